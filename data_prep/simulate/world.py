"""Scenes as CLEVRER makes them, and what happens in them.

    rng ──> generate ──> World (objects, bodies, paths) ──> history ──> History (factual)
                              └── counterfactual(removed) ──> World without it ──> history

Generation is CLEVRER's recursion: one moving object; then, time and again, an object that is placed in the path of one
already there, or aimed at it, for a collision at a chosen frame; a world in which a pair meets twice is dropped. Part of the aims
are for a frame past the end of the video, so that there is something to predict. A world is a function of its generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import (
    COLORS,
    FRAMES,
    MATERIALS,
    SHAPES,
    SHOWN,
    Collision,
    History,
    SceneObject,
)
from data_prep.simulate import physics
from data_prep.simulate.physics import RADIUS, SUBSTEPS, Body, Paths

OBJECTS = {3: 0.08, 4: 0.32, 5: 0.35, 6: 0.25}  # how many, and how often
SPEED = (0.012, 0.042)  # of a moving object when it is meant to collide, units / frame
REST = 0.35  # share of added objects that are placed at rest
UNSEEN = 0.6  # share of added objects that are first aimed past the end of the video
EPISODE = 8  # touches of a pair at most so many frames apart are one collision
LONG = 0.5  # share of added objects for which the candidate that is longest in view is taken
TRIES = 8  # simulations an added object gets
CANDIDATES = 16  # cheap candidates a simulation is chosen from
LEAST_COLLISIONS = 2  # in the video
_SLIDE = physics.SLIDE * SUBSTEPS**2  # units / frame^2
_DEEPEST = 0.06  # deeper overlaps come from objects that enter the view on top of another one


@dataclass
class World:
    """A simulated world. `removed` is the id of the object that was taken out, or -1. `rejected` worlds were dropped before this one."""

    objects: list[SceneObject]
    bodies: list[Body]
    paths: Paths
    removed: int = -1
    rejected: int = 0


def generate(rng: np.random.Generator) -> World:
    """A random world with 3 to 6 objects, at least LEAST_COLLISIONS collisions in the video and no pair that collides twice."""
    rejected = 0
    while True:
        world, failures = _attempt(rng)
        rejected += failures
        if world is not None:
            world.rejected = rejected
            return world


def counterfactual(world: World, removed: int) -> World:
    """The same world without object `removed`, exactly: what is not downstream of it is bit-identical."""
    return World(world.objects, world.bodies, physics.simulate(world.bodies, removed), removed)


def history(world: World) -> History:
    """Collisions, entries, exits and states at the video frames."""
    p = world.paths
    present = presence(p)
    entries, exits = {}, {}
    for i in range(len(world.objects)):
        seen = np.flatnonzero(present[:, i])
        if len(seen):
            if seen[0] > 0:
                entries[i] = int(seen[0])
            if seen[-1] + 1 < FRAMES:
                exits[i] = int(seen[-1]) + 1
    position = np.stack([p.x[:, ::SUBSTEPS].T, p.y[:, ::SUBSTEPS].T], axis=-1)
    velocity = np.stack([p.vx[:, ::SUBSTEPS].T, p.vy[:, ::SUBSTEPS].T], axis=-1) * SUBSTEPS
    objects = [o for o in world.objects if o.object_id != world.removed]
    collisions = [Collision(frame, a, b) for frame, a, b, _, _ in episodes(p)]
    return History(objects, collisions, entries, exits, present, position, velocity)


def presence(p: Paths) -> np.ndarray:
    """(FRAMES, n) bool: the centre is in the view at the frame."""
    steps = np.arange(FRAMES)[:, None] * SUBSTEPS
    return (steps >= p.alive[None, :, 0]) & (steps < p.alive[None, :, 1])


def frame_of(step: int) -> int:
    """First video frame at or after a grid point."""
    return -(-step // SUBSTEPS)


def episodes(p: Paths) -> list[tuple[int, int, int, float, float]]:
    """Collisions (frame, a, b, x, y) sorted by time: runs of touches of a pair at most EPISODE frames apart, at the first touch."""
    last: dict[tuple[int, int], int] = {}
    found = []
    for hit in p.hits:
        pair = (hit.a, hit.b)
        if pair not in last or hit.step - last[pair] > EPISODE * SUBSTEPS:
            found.append((frame_of(hit.step), hit.a, hit.b, hit.x, hit.y))
        last[pair] = hit.step
    return found


def _attempt(rng: np.random.Generator) -> tuple[World | None, int]:
    """One run of the recursion: a world or None, and how many simulated worlds were dropped."""
    count = int(rng.choice(list(OBJECTS), p=list(OBJECTS.values())))
    triples = rng.choice(len(SHAPES) * len(MATERIALS) * len(COLORS), size=count, replace=False)
    objects = [
        SceneObject(
            i,
            COLORS[t % len(COLORS)],
            MATERIALS[t // len(COLORS) % len(MATERIALS)],
            SHAPES[t // (len(COLORS) * len(MATERIALS))],
        )
        for i, t in enumerate(triples.tolist())
    ]
    bodies = [_first(rng, objects[0])]
    paths = physics.simulate(bodies)
    dropped = 0
    for scene_object in objects[1:]:
        late = rng.random() < UNSEEN
        for trial_index in range(TRIES):
            body = _candidate(rng, scene_object, paths, late and trial_index < TRIES // 2)
            if body is None:
                continue
            trial = physics.simulate([*bodies, body])
            if _sound(trial) and len(episodes(trial)) > len(episodes(paths)):
                bodies, paths = [*bodies, body], trial
                break
            dropped += 1
        else:
            return None, dropped + 1
    if sum(frame < SHOWN for frame, *_ in episodes(paths)) < LEAST_COLLISIONS:
        return None, dropped + 1
    return World(objects, bodies, paths), dropped


def _sound(p: Paths) -> bool:
    """No pair collides twice, nothing starts inside something else, everything is seen in the video."""
    pairs = [(a, b) for _, a, b, _, _ in episodes(p)]
    return (
        len(set(pairs)) == len(pairs)
        and all(hit.depth < _DEEPEST for hit in p.hits)
        and bool(presence(p)[:SHOWN].any(0).all())
    )


def _body(
    scene_object: SceneObject, x: float, y: float, vx: float, vy: float, angle: float
) -> Body:
    """A body from units a frame to units a sub-step."""
    mass = physics.MASS[scene_object.material]
    return Body(x, y, vx / SUBSTEPS, vy / SUBSTEPS, angle, 0.0, mass, scene_object.shape == "cube")


def _first(rng: np.random.Generator, scene_object: SceneObject) -> Body:
    """A moving body that is somewhere in the middle of the view at one of the first 50 frames."""
    (x, y), heading = rng.uniform(-0.6, 0.6, 2), rng.uniform(0, 2 * np.pi)
    frame, speed, angle = rng.uniform(0, 50), rng.uniform(*SPEED), rng.uniform(0, np.pi / 2)
    c, s = float(np.cos(heading)), float(np.sin(heading))
    back = speed * frame + 0.5 * _SLIDE * frame**2
    start = speed + _SLIDE * frame
    return _body(
        scene_object, float(x - back * c), float(y - back * s), start * c, start * s, float(angle)
    )


def _candidate(
    rng: np.random.Generator, scene_object: SceneObject, paths: Paths, late: bool
) -> Body | None:
    """A body that should collide with one already there at a drawn frame (`late`: past the end of the video).

    It overlaps nothing before. None if none of CANDIDATES does so.
    """
    m, n = CANDIDATES, len(paths.x)
    draw = rng.random((7, m))
    angle = float(rng.uniform(0, np.pi / 2))
    target = (draw[0] * n).astype(int)
    frame = SHOWN + 44 * draw[2] if late else 6 + (SHOWN - 10) * draw[2]
    column = (frame * SUBSTEPS).astype(int)
    px, py = paths.x[target, column], paths.y[target, column]
    tvx, tvy = paths.vx[target, column] * SUBSTEPS, paths.vy[target, column] * SUBSTEPS
    heading = 2 * np.pi * draw[3]
    speed = np.where(draw[4] < REST, 0.0, SPEED[0] + (SPEED[1] - SPEED[0]) * draw[5])
    c, s = np.cos(heading), np.sin(heading)
    approach = np.arctan2(speed * s - tvy, speed * c - tvx)  # of the new body, seen from the target
    closing = np.hypot(speed * s - tvy, speed * c - tvx)
    side = approach + (draw[6] - 0.5) * 1.9  # up to 54 degrees off centre
    gap = 1.95 * RADIUS  # not 2: a touch at exactly a grid point would hang on the last bit
    x, y = px - gap * np.cos(side), py - gap * np.sin(side)
    back = speed * frame + 0.5 * _SLIDE * frame**2 * (speed > 0)
    start = np.where(speed > 0, speed + _SLIDE * frame, 0.0)
    x0, y0 = x - back * c, y - back * s
    good = (
        (closing > 0.008)
        & (np.maximum(np.abs(x), np.abs(y)) < 0.88)
        & (np.maximum(np.abs(px), np.abs(py)) < 0.88)
    )
    # Nothing may stand where the new body starts, or on its way: look at every third frame up to the aim.
    t = np.arange(0, FRAMES, 3)
    moved = np.minimum(t, (frame - 2)[:, None])
    way = start[:, None] * moved - 0.5 * _SLIDE * moved**2 * (speed > 0)[:, None]
    nx, ny = x0[:, None] + c[:, None] * way, y0[:, None] + s[:, None] * way
    at = (moved * SUBSTEPS).astype(int)
    near = ((paths.x[:, at] - nx) ** 2 + (paths.y[:, at] - ny) ** 2).min(0) < (2.05 * RADIUS) ** 2
    good &= ~((near & (t < (frame - 6)[:, None])).any(1))
    start_gap = np.hypot(paths.x[:, :1] - x0, paths.y[:, :1] - y0).min(0)
    good &= start_gap > 2.7 * RADIUS
    # Of the good ones rather one that is seen for long (an object that stays outside for most of the video teaches little).
    seen = ((np.abs(nx) < physics.VIEW) & (np.abs(ny) < physics.VIEW)).sum(1)
    q = int(np.where(good, seen if draw[1, 0] < LONG else 1, 0).argmax())
    if not good[q]:
        return None
    return _body(
        scene_object,
        float(x0[q]),
        float(y0[q]),
        float(start[q] * c[q]),
        float(start[q] * s[q]),
        angle,
    )
