"""Slots -> what happened: positions by a probe, who is in view, and collisions by a rule of contact. No model, nothing trained on val.

    slots (T, S, D) ──probe──> position ──smooth slopes──> velocity ─┐
                    └─not the empty slot──> in view ─────────────────┼──> History, as question programs read one
                      pairs that come close and are pushed apart ────┘
    train split, observed frames + annotations ──fit──> how close, how hard: the pair of thresholds with the best F1

A collision: two objects in view come closer than `reach`, and at some frame there their relative velocity changes by more than `jolt`
along the line between them, away from each other. Cubes touch at several distances, so distance alone cannot tell; and two that go on
together are closest long after they met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import SHOWN, Collision, History, SceneObject
from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.data.windows import PRESENT
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import Probe, fit_probe

AROUND = 6  # frames before and after the closest one that velocities are read from
EPISODE = 8  # frames apart from which two approaches of a pair are two
STEADY = 8  # frames to each side over which an object's velocity is a slope
SLACK = 5  # frames by which a decoded collision may miss the annotated one


@dataclass(frozen=True)
class Approach:
    """A pair comes close: its smallest `gap` (world units); `frame` and size of the largest outward change of its relative velocity."""

    frame: int
    a: int
    b: int
    gap: float
    jolt: float  # units a frame


@dataclass(frozen=True)
class EventDecoder:
    """Reads events off slots. `reach` and `jolt` as in the module's text; `f1`, `precision`, `recall` of the rule on the train split."""

    probe: Probe
    empty: torch.Tensor  # (D,)
    reach: float = float("inf")
    jolt: float = 0.0
    f1: float = float("nan")
    precision: float = float("nan")
    recall: float = float("nan")

    def decode(
        self, slots: np.ndarray, slot_object: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slots (T, S, D) as stored -> position (T, count, 2), in view (T, count) by object id; never in view where no slot holds it."""
        values = torch.from_numpy(widen(slots))
        held = np.flatnonzero(slot_object >= 0)
        position, present = (
            np.zeros((len(slots), count, 2), np.float32),
            np.zeros((len(slots), count), bool),
        )
        position[:, slot_object[held]], present[:, slot_object[held]] = self.places(values[:, held])
        return position, present

    def places(self, slots: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(..., D) -> position (..., 2), whether the slot holds something (...)."""
        return self.probe(slots).numpy(), ((slots - self.empty).square().mean(-1) > PRESENT).numpy()

    def history(
        self,
        slots: np.ndarray,
        slot_object: np.ndarray,
        objects: list[SceneObject],
        removed: int = -1,
    ) -> History:
        """The events of a video (or of a world without the object `removed`), frames as many as the slots have."""
        position, present = self.decode(slots, slot_object, 1 + max(o.object_id for o in objects))
        if removed >= 0:
            present[:, removed] = False
        found = [a for a in approaches(position, present, self.reach) if a.jolt > self.jolt]
        collisions = sorted(
            (Collision(a.frame, a.a, a.b) for a in found), key=lambda c: (c.frame, c.a, c.b)
        )
        entries, exits = {}, {}
        for o in np.flatnonzero(present.any(0)).tolist():
            seen = np.flatnonzero(present[:, o])
            if seen[0] > 0:
                entries[o] = int(seen[0])
            if seen[-1] + 1 < len(slots):
                exits[o] = int(seen[-1]) + 1
        rest = [o for o in objects if o.object_id != removed]
        return History(
            rest, collisions, entries, exits, present, position, velocities(position, present)
        )


def fit_event_decoder(
    data: str | Path, split: str, *, videos: int = 200, seed: int = 0
) -> EventDecoder:
    """A reader from the observed frames of the first `videos` of a split, their positions and annotated collisions.

    Raises UserError where the data does not say what its empty slot is, has no positions, or no annotated collision.
    """
    manifest = Manifest.load(data)
    if manifest.empty_slot is None:
        raise UserError(
            f"{data} does not say what its empty slot is: who is in view cannot be read off slots"
        )
    probe = fit_probe(data, split, videos=videos, seed=seed)
    if probe is None:
        raise UserError(
            f"split {split!r} of {data} has no positions (truth.npz or match.npz): no probe can be fitted"
        )
    reader = EventDecoder(probe, torch.tensor(manifest.empty_slot))
    return tune_thresholds(reader, list(observed(data, split, min(videos, manifest.count(split)))))


def observed(data: str | Path, split: str, videos: int) -> Iterator[Sample]:
    yield from read_split(
        data, split, ("slots.npy", "json", "truth.npz", "match.npz"), videos=videos
    )


def tune_thresholds(reader: EventDecoder, samples: list[Sample]) -> EventDecoder:
    """The reader with the thresholds that are best, by F1, on annotated collisions; candidates are quantiles of what those look like."""
    videos = []
    for sample in samples:
        assert sample.slots is not None and sample.annotation is not None
        objects = questions.objects(sample.annotation)
        position, present = reader.decode(
            sample.slots[:SHOWN], slot_object(sample), 1 + objects[-1].object_id
        )
        true = [(c["frame_id"], *sorted(c["object_ids"])) for c in sample.annotation["collision"]]
        videos.append(
            (position, present, [c for c in true if present[c[0], c[1]] and present[c[0], c[2]]])
        )
    touching = [
        float(np.hypot(*(position[f, a] - position[f, b])))
        for position, _, true in videos
        for f, a, b in true
    ]
    rows = [
        (
            near.gap,
            near.jolt,
            any(c[1:] == (near.a, near.b) and abs(c[0] - near.frame) <= SLACK for c in true),
        )
        for position, present, true in videos
        for near in approaches(position, present, reach=max(touching, default=0.0))
    ]
    total = len(touching)
    gap, jolt, hit = (
        (np.array(column) for column in zip(*rows))
        if rows
        else (np.zeros(0), np.zeros(0), np.zeros(0, bool))
    )
    if not hit.any():
        raise UserError(
            f"no annotated collision was found in {len(samples)} videos: the rule of contact cannot be set"
        )
    best = reader
    for reach in np.quantile(gap[hit], np.linspace(0.7, 1, 16)):
        for least in np.quantile(jolt[hit], np.linspace(0.4, 0, 21)):
            chosen = (gap <= reach) & (jolt > least)
            right = int((chosen & hit).sum())
            precision, recall = right / max(1, int(chosen.sum())), right / total
            f1 = 2 * right / (int(chosen.sum()) + total)
            if not f1 < best.f1:  # among equals the most permissive: few videos, few collisions
                best = replace(
                    reader,
                    reach=float(reach),
                    jolt=float(least),
                    f1=f1,
                    precision=precision,
                    recall=recall,
                )
    return best


def slot_object(sample: Sample) -> np.ndarray:
    """(S,) object id or -1. Raises UserError where neither truth nor a match says it."""
    known = sample.truth if sample.truth is not None else sample.match
    if known is None or "slot_object" not in known:
        raise UserError(
            f"key {sample.key}: neither truth.npz nor match.npz says which slot holds which object; run data_prep.match"
        )
    return known["slot_object"].astype(int)


def approaches(position: np.ndarray, present: np.ndarray, reach: float) -> list[Approach]:
    """All approaches of two objects in view to less than `reach`; position (T, n, 2), present (T, n). By pair, then by time."""
    found = []
    for a, b in combinations(np.flatnonzero(present.any(0)).tolist(), 2):
        both = present[:, a] & present[:, b]
        apart = position[:, a] - position[:, b]
        gap = np.where(both, np.hypot(*apart.T), np.inf)
        close = np.flatnonzero(gap < reach)
        for run in (
            np.split(close, np.flatnonzero(np.diff(close) > EPISODE) + 1) if len(close) else []
        ):
            jolts = [outward(apart, both, frame) for frame in run.tolist()]
            found.append(
                Approach(int(run[np.argmax(jolts)]), a, b, float(gap[run].min()), max(jolts))
            )
    return found


def outward(apart: np.ndarray, both: np.ndarray, frame: int) -> float:
    """Change of relative velocity at `frame` along the line between two objects, > 0 if away from each other; apart (T, 2), both (T,)."""
    before = slope(apart, both, frame - AROUND, frame)
    after = slope(apart, both, frame, frame + AROUND)
    if before is None or after is None:
        return 0.0
    return float((after - before) @ apart[frame] / max(np.hypot(*apart[frame]), 1e-6))


def slope(values: np.ndarray, known: np.ndarray, first: int, last: int) -> np.ndarray | None:
    """Least-squares change a frame of values (T, 2) over the known frames in [first, last]; None if there are fewer than 3."""
    at = np.arange(max(0, first), min(len(values), last + 1))
    at = at[known[at]]
    if len(at) < 3:
        return None
    time = at - at.mean()
    return time @ values[at] / (time @ time)


def velocities(position: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(T, n, 2): slope over STEADY frames to each side that are in view; 0 where there are none."""
    weight = present.astype(np.float64)
    time = np.arange(len(position), dtype=np.float64)[:, None]
    sums: Any = [window(part) for part in (weight, weight * time, weight * time**2)]
    count, first, second = (part[..., None] for part in sums)
    moved = weight[..., None] * position
    total, product = window(moved), window(moved * time[..., None])
    spread = second * count - first**2
    return np.where(spread > 0, (product * count - first * total) / np.maximum(spread, 1e-12), 0.0)


def window(values: np.ndarray) -> np.ndarray:
    """Sums over STEADY frames to each side, along the first axis."""
    padded = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    at = np.arange(len(values))
    return padded[np.minimum(at + STEADY + 1, len(values))] - padded[np.maximum(at - STEADY, 0)]
