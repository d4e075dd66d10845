"""Decode the events of a video from its slots: positions, objects in view, collisions.

    slots (T, S, D) ──probe──> position ──smoothed slopes──> velocity ───┐
                    └─differs from the empty slot──> in view ────────────┼──> History, the input
                      pairs that approach and are pushed apart ──────────┘    of question programs
    train split: observed frames, annotations ──tune_thresholds──> the thresholds with the best F1

Two objects in view collide where they come closer than `contact_distance`, and where at some frame
of that approach their relative velocity changes by more than `min_velocity_change`, along the line
between them and away from each other. Distance alone is not enough: cubes touch at several
distances, and two objects that move on together are closest long after their collision. No neural
network is involved, and nothing is fitted on the split that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import VIDEO_FRAMES, Collision, History, SceneObject
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.removed_slots import slot_objects
from cjepa_dist.data.windows import PRESENT_DISTANCE
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import PositionProbe, fit_position_probe

SLOPE_FRAMES = 6  # frames before and after a contact over which velocities are fitted
EPISODE_GAP = 8  # approaches of a pair that are at most so many frames apart are one
VELOCITY_FRAMES = 8  # frames to each side over which an object's velocity is fitted
FRAME_TOLERANCE = 5  # maximum distance in frames of a decoded collision from the annotated one


@dataclass(frozen=True)
class Approach:
    """Objects a < b come close; `frame` is that of the largest outward change of velocity."""

    frame: int
    a: int
    b: int
    distance: float  # the smallest one, world units
    velocity_change: float  # of the relative velocity, outward, world units per frame


@dataclass(frozen=True)
class EventDecoder:
    """Decodes events from slots; `f1`, `precision` and `recall` are those on the train split."""

    probe: PositionProbe
    empty: torch.Tensor  # (D,)
    contact_distance: float = float("inf")  # world units
    min_velocity_change: float = 0.0  # world units per frame
    f1: float = float("nan")
    precision: float = float("nan")
    recall: float = float("nan")

    def object_tracks(
        self, slots: np.ndarray, objects: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slots (T, S, D) as stored -> position (T, count, 2), in view (T, count), by object id.

        `objects` (S,) is the object in each slot, or -1. An object in no slot is never in view.
        """
        position = np.zeros((len(slots), count, 2), np.float32)
        present = np.zeros((len(slots), count), bool)
        used = np.flatnonzero(objects >= 0)
        values = torch.from_numpy(to_float32(slots))[:, used]
        position[:, objects[used]], present[:, objects[used]] = self.slot_positions(values)
        return position, present

    def slot_positions(self, slots: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(..., D) -> position (..., 2), and whether the slot holds something (...)."""
        distance = (slots - self.empty).square().mean(-1)
        return self.probe(slots).numpy(), (distance > PRESENT_DISTANCE).numpy()

    def history(
        self,
        slots: np.ndarray,
        objects: np.ndarray,
        scene: list[SceneObject],
        removed: int = -1,
    ) -> History:
        """The events of a video, or of a world without the object `removed`.

        `objects` (S,) is the object in each slot, or -1; `scene` lists all objects of the video.
        """
        position, present = self.object_tracks(slots, objects, 1 + max(o.object_id for o in scene))
        if removed >= 0:
            present[:, removed] = False
        collisions = [
            Collision(approach.frame, approach.a, approach.b)
            for approach in find_approaches(position, present, self.contact_distance)
            if approach.velocity_change > self.min_velocity_change
        ]
        entries, exits = {}, {}
        for o in np.flatnonzero(present.any(0)).tolist():
            frames = np.flatnonzero(present[:, o])
            if frames[0] > 0:
                entries[o] = int(frames[0])
            if frames[-1] + 1 < len(slots):
                exits[o] = int(frames[-1]) + 1
        return History(
            objects=[o for o in scene if o.object_id != removed],
            collisions=sorted(collisions, key=lambda c: (c.frame, c.a, c.b)),
            entries=entries,
            exits=exits,
            present=present,
            position=position,
            velocity=fit_velocities(position, present),
        )


def fit_event_decoder(
    data: str | Path, split: str, *, videos: int = 200, seed: int = 0
) -> EventDecoder:
    """Fit on the observed frames of the first `videos` of a split, and annotated collisions.

    Raises UserError where the data does not say what its empty slot is, or has no positions or no
    annotated collision.
    """
    manifest = Manifest.load(data)
    if manifest.empty_slot is None:
        raise UserError(
            f"{data} does not say what its empty slot is: slots do not tell which object is in view"
        )
    probe = fit_position_probe(data, split, videos=videos, seed=seed)
    if probe is None:
        raise UserError(
            f"split {split!r} of {data} has no positions (truth.npz or match.npz): no probe can be "
            "fitted"
        )
    decoder = EventDecoder(probe, torch.tensor(manifest.empty_slot))
    members = ("slots.npy", "json", "truth.npz", "match.npz")
    samples = read_split(
        data,
        split,
        members,
        videos=min(videos, manifest.count(split)),
        annotation_fields=("scene_index", "object_property", "collision"),
    )
    return tune_thresholds(decoder, list(samples))


def tune_thresholds(decoder: EventDecoder, samples: list[Sample]) -> EventDecoder:
    """The decoder with the thresholds that have the best F1 on annotated collisions.

    Candidates are quantiles of the distances and velocity changes at annotated collisions.
    """
    videos = []
    for sample in samples:
        assert sample.slots is not None and sample.annotation is not None
        count = 1 + questions.scene_objects(sample.annotation)[-1].object_id
        position, present = decoder.object_tracks(
            sample.slots[:VIDEO_FRAMES], slot_objects(sample), count
        )
        annotated = [
            (collision["frame_id"], *sorted(collision["object_ids"]))
            for collision in sample.annotation["collision"] or ()
        ]
        annotated = [(f, a, b) for f, a, b in annotated if present[f, a] and present[f, b]]
        videos.append((position, present, annotated))
    distances = [
        float(np.hypot(*(position[frame, a] - position[frame, b])))
        for position, _, annotated in videos
        for frame, a, b in annotated
    ]
    rows = []
    for position, present, annotated in videos:
        for found in find_approaches(position, present, max(distances, default=0.0)):
            is_annotated = any(
                (a, b) == (found.a, found.b) and abs(frame - found.frame) <= FRAME_TOLERANCE
                for frame, a, b in annotated
            )
            rows.append((found.distance, found.velocity_change, is_annotated))
    if not any(is_annotated for _, _, is_annotated in rows):
        raise UserError(
            f"no annotated collision was found in {len(samples)} videos: the thresholds of the "
            "event decoder cannot be set"
        )
    distance, change, is_collision = (np.array(column) for column in zip(*rows))
    total, best = len(distances), decoder
    for contact_distance in np.quantile(distance[is_collision], np.linspace(0.7, 1, 16)):
        for min_change in np.quantile(change[is_collision], np.linspace(0.4, 0, 21)):
            decoded = (distance <= contact_distance) & (change > min_change)
            correct, count = int((decoded & is_collision).sum()), int(decoded.sum())
            f1 = 2 * correct / (count + total)
            if not f1 < best.f1:  # of equals the most permissive: few videos have few collisions
                best = replace(
                    decoder,
                    contact_distance=float(contact_distance),
                    min_velocity_change=float(min_change),
                    f1=f1,
                    precision=correct / max(1, count),
                    recall=correct / total,
                )
    return best


def find_approaches(
    position: np.ndarray, present: np.ndarray, max_distance: float
) -> list[Approach]:
    """Where two objects in view are closer than `max_distance`, by pair, then by time.

    `position` (T, n, 2), `present` (T, n).
    """
    pairs = list(combinations(np.flatnonzero(present.any(0)).tolist(), 2))
    if not pairs:
        return []
    first, second = np.array(pairs).T
    both = present[:, first] & present[:, second]  # (T, P)
    offset = position[:, first] - position[:, second]
    distances = np.where(both, np.hypot(offset[..., 0], offset[..., 1]), np.inf)
    changes = outward_velocity_changes(offset, both)
    found = []
    for (a, b), distance, change in zip(pairs, distances.T, changes.T):
        close = np.flatnonzero(distance < max_distance)
        if not len(close):
            continue
        for frames in np.split(close, np.flatnonzero(np.diff(close) > EPISODE_GAP) + 1):
            frame = int(frames[np.argmax(change[frames])])
            found.append(Approach(frame, a, b, float(distance[frames].min()), float(change[frame])))
    return found


def outward_velocity_changes(offset: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Changes of the relative velocity at each frame, along the line between two objects, (T, P).

    Positive if they are pushed apart. `offset` (T, P, 2) from one to the other, `both` (T, P) in
    view. 0 where fewer than 3 of the SLOPE_FRAMES before or after are in view.
    """
    before, count_before = fit_slopes(offset, both, SLOPE_FRAMES, 0)
    after, count_after = fit_slopes(offset, both, 0, SLOPE_FRAMES)
    distance = np.maximum(np.hypot(offset[..., 0], offset[..., 1]), 1e-6)
    change = ((after - before) * offset).sum(-1) / distance
    return np.where((count_before >= 3) & (count_after >= 3), change, 0.0)


def fit_velocities(position: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(T, n, 2): slopes over the VELOCITY_FRAMES to each side that are in view; else 0."""
    return fit_slopes(position, present, VELOCITY_FRAMES, VELOCITY_FRAMES)[0]


def fit_slopes(
    values: np.ndarray, known: np.ndarray, back: int, ahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares slopes per frame (T, n, 2), and the number of frames of each (T, n).

    Of `values` (T, n, 2) where `known` (T, n), from `back` frames before each frame to `ahead`
    after it. 0 where there are fewer than two.
    """

    def windowed_sum(part: np.ndarray) -> np.ndarray:
        padded = np.concatenate([np.zeros_like(part[:1]), part.cumsum(0)])
        at = np.arange(len(part))
        return padded[np.minimum(at + ahead + 1, len(part))] - padded[np.maximum(at - back, 0)]

    weight = known.astype(np.float64)
    time = np.arange(len(values), dtype=np.float64)[:, None]
    moments: Any = [windowed_sum(part) for part in (weight, weight * time, weight * time**2)]
    count, first, second = (part[..., None] for part in moments)
    weighted = weight[..., None] * values
    total, product = windowed_sum(weighted), windowed_sum(weighted * time[..., None])
    determinant = second * count - first**2
    slope = (product * count - first * total) / np.maximum(determinant, 1e-12)
    return np.where(determinant > 0, slope, 0.0), moments[0]
