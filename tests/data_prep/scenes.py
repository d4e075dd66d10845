"""Helpers of the simulator's tests: a random layout of slots, and what a removal affects."""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES
from data_prep.simulate import world


def random_layout(
    w: world.World, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """slot_object (7,), background (7,) and noise (T, 7, 128), standard normal."""
    slot_object, background = np.full(7, -1), np.zeros(7, bool)
    order = rng.permutation(7)
    slot_object[order[: len(w.objects)]] = np.arange(len(w.objects))
    background[order[len(w.objects)]] = True
    return (
        slot_object,
        background,
        rng.standard_normal((GROUND_TRUTH_FRAMES, 7, 128), np.float32),
    )


def affected_objects(w: world.World, removed: int) -> set[int]:
    """The objects that a chain of impacts, ordered in time, in either world, links to `removed`."""
    affected = {removed}
    other = world.counterfactual(w, removed)
    impacts = sorted(
        [*w.trajectories.impacts, *other.trajectories.impacts],
        key=lambda impact: (impact.step, impact.a, impact.b),
    )
    for impact in impacts:
        if impact.a in affected or impact.b in affected:
            affected |= {impact.a, impact.b}
    return affected - {removed}
