"""Generated worlds: objects, collisions and speeds are distributed as in CLEVRER."""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer.scene import (
    COLORS,
    MATERIALS,
    SHAPES,
    SIMULATED_FRAMES,
    VIDEO_FRAMES,
)
from data_prep.simulate import (
    motion,
    world,
)
from data_prep.simulate.motion import SUBSTEPS


def test_scenes(worlds: list[world.World]) -> None:
    """3 to 6 unique objects, no pair collides twice, no deep overlap, enough collisions."""
    collisions, unseen = [], 0
    for w in worlds:
        triples = [(o.color, o.material, o.shape) for o in w.objects]
        assert len(set(triples)) == len(triples) and 3 <= len(triples) <= 6
        assert all(c in COLORS and m in MATERIALS and s in SHAPES for c, m, s in triples)
        assert [b.mass for b in w.bodies] == [
            {"metal": 2.0, "rubber": 1.0}[o.material] for o in w.objects
        ]
        h = world.history(w)
        pairs = [(c.a, c.b) for c in h.collisions]
        assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
        assert [c.frame for c in h.collisions] == sorted(c.frame for c in h.collisions)
        assert (
            h.present.shape == (SIMULATED_FRAMES, len(triples))
            and h.present[:VIDEO_FRAMES].any(0).all()
        )
        p = w.trajectories
        for i in range(len(triples)):
            seen = np.flatnonzero(h.present[:, i])
            assert len(seen) == seen[-1] - seen[0] + 1, "an object that has left does not come back"
            assert (
                h.entries.get(i, 0) == seen[0] and h.exits.get(i, SIMULATED_FRAMES) == seen[-1] + 1
            )
            for j in range(i):
                distance = np.hypot(
                    p.x[i, ::SUBSTEPS] - p.x[j, ::SUBSTEPS], p.y[i, ::SUBSTEPS] - p.y[j, ::SUBSTEPS]
                )
                assert (
                    distance[h.present[:, i] & h.present[:, j]].min(initial=9.0)
                    > 2 * motion.HALF_SIDE - 0.06
                )
        shown = sum(c.frame < VIDEO_FRAMES for c in h.collisions)
        collisions.append(shown)
        unseen += len(pairs) > shown
    assert min(collisions) >= 2 and 3.0 < np.mean(collisions) < 4.5
    assert unseen > 0.3 * len(worlds), "predictive questions need collisions after the end"


def test_a_sixth_of_the_objects_rest_and_the_others_move_as_stated(
    worlds: list[world.World],
) -> None:
    steps = []
    for w in worlds:
        h = world.history(w)
        steps.append(
            5 * np.hypot(*np.moveaxis(h.velocity[:VIDEO_FRAMES], -1, 0))[h.present[:VIDEO_FRAMES]]
        )
    speed = np.concatenate(steps)
    assert 0.1 < (speed == 0).mean() < 0.35
    assert 0.05 < np.median(speed[speed > 0]) < 0.12 and np.quantile(speed, 0.95) < 0.25
