"""Generates random worlds as CLEVRER does.

One moving object comes first. Then objects are added one at a time, each placed in the way of an
object that is already there, or aimed at it, for a collision at a drawn frame. Some are aimed at a
frame after the end of the video, so that there is something to predict. A world in which a pair
collides twice is dropped. A world is a function of its random generator.
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer.scene import (
    COLORS,
    MATERIALS,
    SHAPES,
    SIMULATED_FRAMES,
    VIDEO_FRAMES,
    SceneObject,
)
from data_prep.simulate import motion, physics
from data_prep.simulate.motion import RADIUS, SUBSTEPS, Body, Trajectories
from data_prep.simulate.world import World, collision_episodes, visible_frames

OBJECT_COUNTS = {3: 0.08, 4: 0.32, 5: 0.35, 6: 0.25}  # number of objects: probability
SPEED_RANGE = (0.012, 0.042)  # of a moving object when it is meant to collide, units / frame
REST_SHARE = 0.35  # share of added objects that are placed at rest
LATE_SHARE = 0.6  # share of added objects that are first aimed after the end of the video
LONGEST_SHARE = 0.5  # share of added objects whose candidate is the one that is longest in view
MAX_TRIALS = 8  # simulations per added object
CANDIDATES = 16  # cheap candidates from which each simulation is chosen
MIN_COLLISIONS = 2  # in the video
_FRICTION = motion.FRICTION * SUBSTEPS**2  # units / frame^2
_MAX_DEPTH = 0.06  # deeper overlaps come from objects that enter the view on top of another one


def generate(rng: np.random.Generator, count: int | None = None) -> World:
    """A random world of 3 to 6 objects with at least MIN_COLLISIONS collisions in the video.

    `count`: of so many objects instead.
    """
    rejected = 0
    while True:
        world, failures = _try_generate(rng, count)
        rejected += failures
        if world is not None:
            world.rejected = rejected
            return world


def _try_generate(rng: np.random.Generator, count: int | None) -> tuple[World | None, int]:
    """One attempt: a world or None, and the number of simulated worlds that were dropped."""
    if count is None:
        count = int(rng.choice(list(OBJECT_COUNTS), p=list(OBJECT_COUNTS.values())))
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
    bodies = [_first_body(rng, objects[0])]
    trajectories = physics.simulate(bodies)
    dropped = 0
    for scene_object in objects[1:]:
        late = rng.random() < LATE_SHARE
        for trial_index in range(MAX_TRIALS):
            body = _propose_body(
                rng, scene_object, trajectories, late and trial_index < MAX_TRIALS // 2
            )
            if body is None:
                continue
            trial = physics.simulate([*bodies, body])
            if _is_valid(trial) and len(collision_episodes(trial)) > len(
                collision_episodes(trajectories)
            ):
                bodies, trajectories = [*bodies, body], trial
                break
            dropped += 1
        else:
            return None, dropped + 1
    if sum(frame < VIDEO_FRAMES for frame, *_ in collision_episodes(trajectories)) < MIN_COLLISIONS:
        return None, dropped + 1
    return World(objects, bodies, trajectories), dropped


def _is_valid(p: Trajectories) -> bool:
    """No pair collides twice, no body starts inside another, all are in view in the video."""
    pairs = [(a, b) for _, a, b, _, _ in collision_episodes(p)]
    return (
        len(set(pairs)) == len(pairs)
        and all(impact.depth < _MAX_DEPTH for impact in p.impacts)
        and bool(visible_frames(p)[:VIDEO_FRAMES].any(0).all())
    )


def _make_body(
    scene_object: SceneObject, x: float, y: float, vx: float, vy: float, angle: float
) -> Body:
    """A body; speeds are converted from units / frame to units / sub-step."""
    mass = motion.MASS[scene_object.material]
    return Body(x, y, vx / SUBSTEPS, vy / SUBSTEPS, angle, 0.0, mass, scene_object.shape == "cube")


def _first_body(rng: np.random.Generator, scene_object: SceneObject) -> Body:
    """A moving body that is near the middle of the view at one of the first 50 frames."""
    (x, y), heading = rng.uniform(-0.6, 0.6, 2), rng.uniform(0, 2 * np.pi)
    frame, speed, angle = rng.uniform(0, 50), rng.uniform(*SPEED_RANGE), rng.uniform(0, np.pi / 2)
    c, s = float(np.cos(heading)), float(np.sin(heading))
    back = speed * frame + 0.5 * _FRICTION * frame**2
    start = speed + _FRICTION * frame
    return _make_body(
        scene_object, float(x - back * c), float(y - back * s), start * c, start * s, float(angle)
    )


def _propose_body(
    rng: np.random.Generator, scene_object: SceneObject, trajectories: Trajectories, late: bool
) -> Body | None:
    """A body that should collide with an existing one at a drawn frame, and touch nothing before.

    `late`: after the end of the video. None if no candidate does so.
    """
    m, n = CANDIDATES, len(trajectories.x)
    draw = rng.random((7, m))
    angle = float(rng.uniform(0, np.pi / 2))
    target = (draw[0] * n).astype(int)
    frame = VIDEO_FRAMES + 44 * draw[2] if late else 6 + (VIDEO_FRAMES - 10) * draw[2]
    column = (frame * SUBSTEPS).astype(int)
    px, py = trajectories.x[target, column], trajectories.y[target, column]
    tvx, tvy = (
        trajectories.vx[target, column] * SUBSTEPS,
        trajectories.vy[target, column] * SUBSTEPS,
    )
    heading = 2 * np.pi * draw[3]
    speed = np.where(
        draw[4] < REST_SHARE, 0.0, SPEED_RANGE[0] + (SPEED_RANGE[1] - SPEED_RANGE[0]) * draw[5]
    )
    c, s = np.cos(heading), np.sin(heading)
    approach = np.arctan2(speed * s - tvy, speed * c - tvx)  # of the new body, seen from the target
    closing = np.hypot(speed * s - tvy, speed * c - tvx)
    side = approach + (draw[6] - 0.5) * 1.9  # up to 54 degrees off centre
    gap = 1.95 * RADIUS  # not 2: a touch at exactly a grid point would hang on the last bit
    x, y = px - gap * np.cos(side), py - gap * np.sin(side)
    back = speed * frame + 0.5 * _FRICTION * frame**2 * (speed > 0)
    start = np.where(speed > 0, speed + _FRICTION * frame, 0.0)
    x0, y0 = x - back * c, y - back * s
    good = (
        (closing > 0.008)
        & (np.maximum(np.abs(x), np.abs(y)) < 0.88)
        & (np.maximum(np.abs(px), np.abs(py)) < 0.88)
    )
    # Nothing may be where the new body starts, or on its way: every third frame up to the
    # collision.
    t = np.arange(0, SIMULATED_FRAMES, 3)
    moved = np.minimum(t, (frame - 2)[:, None])
    path = start[:, None] * moved - 0.5 * _FRICTION * moved**2 * (speed > 0)[:, None]
    nx, ny = x0[:, None] + c[:, None] * path, y0[:, None] + s[:, None] * path
    at = (moved * SUBSTEPS).astype(int)
    near = ((trajectories.x[:, at] - nx) ** 2 + (trajectories.y[:, at] - ny) ** 2).min(0) < (
        2.05 * RADIUS
    ) ** 2
    good &= ~((near & (t < (frame - 6)[:, None])).any(1))
    start_gap = np.hypot(trajectories.x[:, :1] - x0, trajectories.y[:, :1] - y0).min(0)
    good &= start_gap > 2.7 * RADIUS
    # Of the good ones rather one that is seen for long (an object that stays outside for most of
    # the video teaches little).
    seen = ((np.abs(nx) < motion.VIEW_HALF_WIDTH) & (np.abs(ny) < motion.VIEW_HALF_WIDTH)).sum(1)
    q = int(np.where(good, seen if draw[1, 0] < LONGEST_SHARE else 1, 0).argmax())
    if not good[q]:
        return None
    return _make_body(
        scene_object,
        float(x0[q]),
        float(y0[q]),
        float(start[q] * c[q]),
        float(start[q] * s[q]),
        angle,
    )
