"""A simulated world, its counterfactual worlds, and the history of what happens in them.

World (objects, bodies, trajectories) ──history──> History
  └──counterfactual(removed)──> World without that object ──history──> History
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import SIMULATED_FRAMES, Collision, History, SceneObject
from data_prep.simulate import physics
from data_prep.simulate.motion import SUBSTEPS, Body, Trajectories

EPISODE_GAP = 8  # impacts of a pair at most this many frames apart are one collision


@dataclass
class World:
    """A simulated world.

    `removed` is the id of the object that was removed, or -1. `rejected` counts the worlds that
    were dropped before this one.
    """

    objects: list[SceneObject]
    bodies: list[Body]
    trajectories: Trajectories
    removed: int = -1
    rejected: int = 0


def counterfactual(world: World, removed: int) -> World:
    """The same world without object `removed`: what it does not affect is bit-identical."""
    return World(world.objects, world.bodies, physics.simulate(world.bodies, removed), removed)


def history(world: World) -> History:
    """Collisions, entries, exits and states at the video frames."""
    p = world.trajectories
    present = visible_frames(p)
    entries, exits = {}, {}
    for i in range(len(world.objects)):
        seen = np.flatnonzero(present[:, i])
        if len(seen):
            if seen[0] > 0:
                entries[i] = int(seen[0])
            if seen[-1] + 1 < SIMULATED_FRAMES:
                exits[i] = int(seen[-1]) + 1
    position = np.stack([p.x[:, ::SUBSTEPS].T, p.y[:, ::SUBSTEPS].T], axis=-1)
    velocity = np.stack([p.vx[:, ::SUBSTEPS].T, p.vy[:, ::SUBSTEPS].T], axis=-1) * SUBSTEPS
    objects = [o for o in world.objects if o.object_id != world.removed]
    collisions = [Collision(frame, a, b) for frame, a, b, _, _ in collision_episodes(p)]
    return History(objects, collisions, entries, exits, present, position, velocity)


def visible_frames(p: Trajectories) -> np.ndarray:
    """(SIMULATED_FRAMES, n) bool: the centre is in view at the frame."""
    steps = np.arange(SIMULATED_FRAMES)[:, None] * SUBSTEPS
    return (steps >= p.in_view[None, :, 0]) & (steps < p.in_view[None, :, 1])


def frame_at(step: int) -> int:
    """First video frame at or after a grid point."""
    return -(-step // SUBSTEPS)


def collision_episodes(p: Trajectories) -> list[tuple[int, int, int, float, float]]:
    """Collisions (frame, a, b, x, y) sorted by time, each at its first impact.

    A collision is a run of impacts of a pair that are at most EPISODE_GAP frames apart.
    """
    last: dict[tuple[int, int], int] = {}
    found = []
    for impact in p.impacts:
        pair = (impact.a, impact.b)
        if pair not in last or impact.step - last[pair] > EPISODE_GAP * SUBSTEPS:
            found.append((frame_at(impact.step), impact.a, impact.b, impact.x, impact.y))
        last[pair] = impact.step
    return found
