"""The ground truth of a video by slots: states, contacts, influence, counterfactual worlds."""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES, VIDEO_FRAMES
from data_prep.simulate import encoders, physics
from data_prep.simulate.motion import RADIUS, SUBSTEPS, Body, Trajectories
from data_prep.simulate.scene_state import SceneState, objects_to_slots, slot_by_object
from data_prep.simulate.world import World, frame_at, visible_frames

MIN_INFLUENCE = 0.02  # in radii; a smaller effect is not counted as influence


def frame_states(
    trajectories: Trajectories, frames: int = GROUND_TRUTH_FRAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position (T, n, 2), velocity (T, n, 2), angle (T, n), spin (T, n) in the first video frames.

    Velocity and spin are per video frame.
    """
    at = slice(0, (frames - 1) * SUBSTEPS + 1, SUBSTEPS)
    position = np.stack([trajectories.x[:, at].T, trajectories.y[:, at].T], axis=-1)
    velocity = np.stack([trajectories.vx[:, at].T, trajectories.vy[:, at].T], axis=-1) * SUBSTEPS
    return position, velocity, trajectories.angle[:, at].T, trajectories.spin[:, at].T * SUBSTEPS


def encode_world(
    world: World, slot_object: np.ndarray, background: np.ndarray, noise: np.ndarray, encoder: str
) -> np.ndarray:
    """(GROUND_TRUTH_FRAMES, S, D) slots of a world; a removed object shows the empty slot."""
    position, _, angle, _ = frame_states(world.trajectories)
    present = visible_frames(world.trajectories)[:GROUND_TRUTH_FRAMES]
    scene = SceneState(world.objects, slot_object, background, position, angle, present)
    return encoders.encode(encoder, scene, noise)


def scene_arrays(
    world: World, slot_object: np.ndarray, background: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of the ground truth that need no other world."""
    position, velocity, _, _ = frame_states(world.trajectories)
    return {
        "slot_object": slot_object.astype(np.int8),
        "background": background,
        "present": objects_to_slots(
            visible_frames(world.trajectories)[:GROUND_TRUTH_FRAMES], slot_object
        ),
        "position": objects_to_slots(position.astype(np.float32), slot_object),
        "velocity": objects_to_slots(velocity.astype(np.float32), slot_object),
        "radius": np.float32(RADIUS),
        "contacts": contact_rows(world.trajectories, slot_object),
    }


def counterfactual_arrays(
    worlds: list[World],
    slot_object: np.ndarray,
    background: np.ndarray,
    noise: np.ndarray,
    encoder: str,
    dtype: str,
) -> dict[str, np.ndarray]:
    """The counterfactual_* arrays of worlds that each lack one object; no world: length 0."""
    shape = (len(worlds), GROUND_TRUTH_FRAMES, len(slot_object))
    removed, rows = np.zeros(len(worlds), np.int8), []
    all_slots, position, present = (
        np.zeros((*shape, noise.shape[-1]), dtype),
        np.zeros((*shape, 2), np.float32),
        np.zeros(shape, bool),
    )
    for w, world in enumerate(worlds):
        slot = slot_by_object(slot_object)[world.removed]
        removed[w] = slot
        all_slots[w] = encode_world(world, slot_object, background, noise, encoder)
        position[w] = objects_to_slots(
            frame_states(world.trajectories)[0].astype(np.float32), slot_object
        )
        position[w, :, slot] = 0.0
        present[w] = objects_to_slots(
            visible_frames(world.trajectories)[:GROUND_TRUTH_FRAMES], slot_object
        )
        rows += [(w, *row) for row in contact_rows(world.trajectories, slot_object).tolist()]
    return {
        "counterfactual_removed": removed,
        "counterfactual_slots": all_slots,
        "counterfactual_position": position,
        "counterfactual_present": present,
        "counterfactual_contacts": np.array(rows, np.int16).reshape(-1, 4),
    }


def influence_rows(world: World, slot_object: np.ndarray, horizon: int) -> np.ndarray:
    """(M, 3) int16 rows (frame, i, j) of slots, for frames 0 .. VIDEO_FRAMES - 1 - horizon.

    If j is removed from the state at `frame`, then i is more than MIN_INFLUENCE radii elsewhere at
    frame + horizon. Only a j with a contact in (frame, frame + horizon] can have an effect: for all
    others it is exactly 0.
    """
    p, rows, slot = world.trajectories, [], slot_by_object(slot_object)
    for frame in range(VIDEO_FRAMES - horizon):
        start, end = frame * SUBSTEPS, (frame + horizon) * SUBSTEPS
        touching = sorted(
            {
                body
                for impact in p.impacts
                if start < impact.step <= end
                for body in (impact.a, impact.b)
            }
        )
        if not touching:
            continue
        bodies, gone = bodies_at(world, start), p.in_view[:, 1] <= start
        for j in touching:
            without = physics.simulate(bodies, j, end - start + 1, gone)
            moved = (
                np.hypot(without.x[:, -1] - p.x[:, end], without.y[:, -1] - p.y[:, end])
                > MIN_INFLUENCE * RADIUS
            )
            rows += [(frame, slot[i], slot[j]) for i in np.flatnonzero(moved).tolist() if i != j]
    return np.array(sorted(rows), np.int16).reshape(-1, 3)


def bodies_at(world: World, step: int) -> list[Body]:
    """The bodies as they are at a grid point, as the start of another simulation."""
    p = world.trajectories
    state = np.stack([a[:, step] for a in (p.x, p.y, p.vx, p.vy, p.angle, p.spin)], axis=1).tolist()
    return [
        Body(x, y, vx, vy, angle, spin, body.mass, body.cube)
        for (x, y, vx, vy, angle, spin), body in zip(state, world.bodies, strict=True)
    ]


def contact_rows(trajectories: Trajectories, slot_object: np.ndarray) -> np.ndarray:
    """(N, 3) int16 rows (frame, i, j), sorted: slots i < j touched in (frame - 1, frame].

    Only frames below GROUND_TRUTH_FRAMES.
    """
    slot = slot_by_object(slot_object)
    rows = {
        (frame_at(impact.step), *sorted((slot[impact.a], slot[impact.b])))
        for impact in trajectories.impacts
        if frame_at(impact.step) < GROUND_TRUTH_FRAMES
    }
    return np.array(sorted(rows), np.int16).reshape(-1, 3)
