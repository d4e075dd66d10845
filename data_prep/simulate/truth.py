"""What is stored beside a video: truth arrays in slot indices, influence, the counterfactual worlds, and CLEVRER's annotation JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.clevrer.scene import SHOWN, TRUTH_FRAMES, SceneObject
from data_prep.simulate import physics, slots
from data_prep.simulate.physics import RADIUS, SUBSTEPS, Body, Paths
from data_prep.simulate.world import World, counterfactual, episodes, frame_of, presence

LEAST_EFFECT = 0.02  # of a radius: a smaller effect is no influence


def frame_states(
    paths: Paths, frames: int = TRUTH_FRAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position (T, n, 2), velocity (T, n, 2) a video frame, angle (T, n), spin (T, n) a video frame, at the first video frames."""
    at = slice(0, (frames - 1) * SUBSTEPS + 1, SUBSTEPS)
    position = np.stack([paths.x[:, at].T, paths.y[:, at].T], axis=-1)
    velocity = np.stack([paths.vx[:, at].T, paths.vy[:, at].T], axis=-1) * SUBSTEPS
    return position, velocity, paths.angle[:, at].T, paths.spin[:, at].T * SUBSTEPS


def world_slots(
    world: World, slot_object: np.ndarray, background: np.ndarray, noise: np.ndarray, tier: str
) -> np.ndarray:
    """(TRUTH_FRAMES, S, D) float32 of a world; a removed object shows the empty slot."""
    position, _, angle, _ = frame_states(world.paths)
    return slots.encode(
        world.objects,
        slot_object,
        background,
        position,
        angle,
        presence(world.paths)[:TRUTH_FRAMES],
        noise,
        tier,
    )


def scene_truth(
    world: World, slot_object: np.ndarray, background: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of truth.npz that need no other world, as docs/design.md lists them."""
    position, velocity, _, _ = frame_states(world.paths)
    return {
        "slot_object": slot_object.astype(np.int8),
        "background": background,
        "present": to_slots(presence(world.paths)[:TRUTH_FRAMES], slot_object),
        "position": to_slots(position.astype(np.float32), slot_object),
        "velocity": to_slots(velocity.astype(np.float32), slot_object),
        "radius": np.float32(RADIUS),
        "contacts": contact_rows(world.paths, slot_object),
    }


def counterfactual_truth(
    worlds: list[World],
    slot_object: np.ndarray,
    background: np.ndarray,
    noise: np.ndarray,
    tier: str,
    dtype: str,
) -> dict[str, np.ndarray]:
    """The counterfactual_* arrays for worlds without an object each (none: arrays of length 0)."""
    shape = (len(worlds), TRUTH_FRAMES, len(slot_object))
    removed, rows = np.zeros(len(worlds), np.int8), []
    all_slots, position, present = (
        np.zeros((*shape, noise.shape[-1]), dtype),
        np.zeros((*shape, 2), np.float32),
        np.zeros(shape, bool),
    )
    for w, world in enumerate(worlds):
        slot = slot_of(slot_object)[world.removed]
        removed[w] = slot
        all_slots[w] = world_slots(world, slot_object, background, noise, tier)
        position[w] = to_slots(frame_states(world.paths)[0].astype(np.float32), slot_object)
        position[w, :, slot] = 0.0
        present[w] = to_slots(presence(world.paths)[:TRUTH_FRAMES], slot_object)
        rows += [(w, *row) for row in contact_rows(world.paths, slot_object).tolist()]
    return {
        "counterfactual_removed": removed,
        "counterfactual_slots": all_slots,
        "counterfactual_position": position,
        "counterfactual_present": present,
        "counterfactual_contacts": np.array(rows, np.int16).reshape(-1, 4),
    }


def influence_rows(world: World, slot_object: np.ndarray, horizon: int) -> np.ndarray:
    """(M, 3) int16 rows (frame, i, j), slots, for frames 0 .. SHOWN - 1 - horizon.

    Taking j out of the state at `frame` moves i by more than LEAST_EFFECT of a radius by frame + horizon. Only a j with a touch in
    (frame, frame + horizon] can: for all others the effect is exactly 0.
    """
    p, rows, slot = world.paths, [], slot_of(slot_object)
    for frame in range(SHOWN - horizon):
        start, end = frame * SUBSTEPS, (frame + horizon) * SUBSTEPS
        touching = sorted(
            {body for hit in p.hits if start < hit.step <= end for body in (hit.a, hit.b)}
        )
        if not touching:
            continue
        bodies, gone = state_at(world, start), p.alive[:, 1] <= start
        for j in touching:
            without = physics.simulate(bodies, j, end - start + 1, gone)
            moved = (
                np.hypot(without.x[:, -1] - p.x[:, end], without.y[:, -1] - p.y[:, end])
                > LEAST_EFFECT * RADIUS
            )
            rows += [(frame, slot[i], slot[j]) for i in np.flatnonzero(moved).tolist() if i != j]
    return np.array(sorted(rows), np.int16).reshape(-1, 3)


def state_at(world: World, step: int) -> list[Body]:
    """The bodies as they are at a grid point, to start another simulation from."""
    p = world.paths
    state = np.stack([a[:, step] for a in (p.x, p.y, p.vx, p.vy, p.angle, p.spin)], axis=1).tolist()
    return [
        Body(x, y, vx, vy, angle, spin, body.mass, body.cube)
        for (x, y, vx, vy, angle, spin), body in zip(state, world.bodies)
    ]


def to_slots(array: np.ndarray, slot_object: np.ndarray) -> np.ndarray:
    """(T, n, ...) by object -> (T, S, ...) by slot, 0 for slots without an object."""
    out = np.zeros((len(array), len(slot_object), *array.shape[2:]), array.dtype)
    held = slot_object >= 0
    out[:, held] = array[:, slot_object[held]]
    return out


def slot_of(slot_object: np.ndarray) -> dict[int, int]:
    """Object id -> slot."""
    return {int(o): s for s, o in enumerate(slot_object.tolist()) if o >= 0}


def contact_rows(paths: Paths, slot_object: np.ndarray) -> np.ndarray:
    """(N, 3) int16 rows (frame, i, j), slots i < j, sorted: the pair touched in (frame - 1, frame], frame < TRUTH_FRAMES."""
    slot = slot_of(slot_object)
    rows = {
        (frame_of(hit.step), *sorted((slot[hit.a], slot[hit.b])))
        for hit in paths.hits
        if frame_of(hit.step) < TRUTH_FRAMES
    }
    return np.array(sorted(rows), np.int16).reshape(-1, 3)


@dataclass
class Annotation:
    """What CLEVRER's annotation JSON says, as arrays: a worker hands these over, which is far less than 10,000 small containers.

    World units, velocities a video frame, every centre at the height of a radius; the collisions of the video only.
    """

    scene_index: int
    objects: list[SceneObject]
    location: np.ndarray  # (SHOWN, n, 3), as the next three
    orientation: np.ndarray
    velocity: np.ndarray
    angular_velocity: np.ndarray
    inside: np.ndarray  # (SHOWN, n) bool
    collisions: list[tuple[int, int, int, float, float]]  # frame, a, b, x, y

    def json(self) -> dict[str, Any]:
        """CLEVRER's annotation JSON."""
        vectors = (
            self.location,
            self.orientation,
            self.velocity,
            self.angular_velocity,
            self.inside,
        )
        return {
            "scene_index": self.scene_index,
            "video_filename": f"video_{self.scene_index:05d}.mp4",
            "object_property": [
                {
                    "object_id": o.object_id,
                    "color": o.color,
                    "material": o.material,
                    "shape": o.shape,
                }
                for o in self.objects
            ],
            "motion_trajectory": [
                {
                    "frame_id": t,
                    "objects": [
                        {
                            "object_id": i,
                            "location": location,
                            "orientation": orientation,
                            "velocity": velocity,
                            "angular_velocity": spin,
                            "inside_camera_view": inside,
                        }
                        for i, (location, orientation, velocity, spin, inside) in enumerate(
                            zip(*frame)
                        )
                    ],
                }
                for t, frame in enumerate(zip(*(a.tolist() for a in vectors)))
            ],
            "collision": [
                {
                    "object_ids": [a, b],
                    "frame_id": frame,
                    "location": [round(x, 5), round(y, 5), RADIUS],
                }
                for frame, a, b, x, y in self.collisions
            ],
        }


def annotation(world: World, scene_index: int) -> Annotation:
    """The annotation of a world's video, rounded to 5 digits."""
    position, velocity, angle, spin = frame_states(world.paths, SHOWN)
    location, orientation, speed, angular = np.zeros((4, SHOWN, len(world.objects), 3))
    location[..., :2], location[..., 2], orientation[..., 2] = (
        position.round(5),
        RADIUS,
        angle.round(5),
    )
    speed[..., :2], angular[..., 2] = velocity.round(5), spin.round(5)
    collisions = [c for c in episodes(world.paths) if c[0] < SHOWN]
    return Annotation(
        scene_index,
        world.objects,
        location,
        orientation,
        speed,
        angular,
        presence(world.paths)[:SHOWN],
        collisions,
    )


def removal_changes(world: World, removed: int) -> set[int]:
    """Objects downstream of `removed`: a chain of touches, in order of time, in either world, leads from it to them."""
    changed = {removed}
    other = counterfactual(world, removed)
    hits = sorted([*world.paths.hits, *other.paths.hits], key=lambda hit: (hit.step, hit.a, hit.b))
    for hit in hits:
        if hit.a in changed or hit.b in changed:
            changed |= {hit.a, hit.b}
    return changed - {removed}
