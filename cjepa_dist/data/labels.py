"""The truth of simulated videos, stacked, and what it says about windows of frames.

    truth.npz of each video ──load_truth──> arrays (V, ...) ──WindowTruth──> batches of labels (B, S, S)
                                               └──> evaluation of rollouts (whole videos)

Contacts are kept as counts up to each frame, (V, frames, S, S): a pair touched in (a, b] where the counts at a and b differ, so a
batch needs two gathers and no loop. One byte a pair and frame: 128 x 49 bytes = 6.3 KB a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import MATCH, TRUTH, ShardReader, select_shards
from cjepa_dist.errors import UserError

NEAR = 1.5  # a near miss comes closer than this many diameters
WORLDS = (
    "counterfactual_removed",
    "counterfactual_slots",
    "counterfactual_position",
    "counterfactual_present",
    "counterfactual_contacts",
)
RAGGED = ("contacts", "influence", *WORLDS)
FACTUAL = (
    "slot_object",
    "background",
    "present",
    "position",
    "velocity",
    "radius",
    "contacts",
    "influence",
    "influence_horizon",
)


def load_truth(
    folder: str | Path,
    split: str,
    videos: int = 0,
    names: Sequence[str] = (*FACTUAL, "future_slots"),
    member: str = TRUTH,
) -> dict[str, Any]:
    """Truth (or another npz member) of a split, or of its first `videos`: {name: array (V, ...)}; `RAGGED` ones are lists of V arrays.

    Names, shapes, units as in docs/design.md; `names` that no video has are left out. UserError naming shard and key if a video has no
    truth, or not the same names or shapes as the others.
    """
    manifest = Manifest.load(folder)
    columns: dict[str, list[np.ndarray]] = {}
    count = 0
    for entry, keys in select_shards(manifest, split, videos):
        with ShardReader(folder, split, entry) as shard:
            for key in keys:
                truth = shard.arrays(key, member, names)
                if truth is None:
                    raise UserError(
                        f"shard {shard.path}, key {key}: has no {member}; only simulated data has truth"
                    )
                if count and truth.keys() != columns.keys():
                    raise UserError(
                        f"shard {shard.path}, key {key}: truth has {sorted(truth)}, the videos before {sorted(columns)}"
                    )
                for name, array in truth.items():
                    column = columns.setdefault(name, [])
                    if column and name not in RAGGED and array.shape != column[0].shape:
                        raise UserError(
                            f"shard {shard.path}, key {key}: truth {name} is {array.shape}, before it was {column[0].shape}"
                        )
                    column.append(array)
                count += 1
    return {
        name: column if name in RAGGED else np.stack(column) for name, column in columns.items()
    }


def load_presence(folder: str | Path, split: str, videos: int = 0) -> np.ndarray | None:
    """(V, T, S) bool, T as in the slots: whether a slot holds an object in view; from truth, else from `data_prep.match`.

    None without, or where it ends before the slots do (those were rolled out since). What the first video has, all must have.
    """
    manifest = Manifest.load(folder)
    parts: list[np.ndarray] = []
    for entry, keys in select_shards(manifest, split, videos):
        with ShardReader(folder, split, entry) as shard:
            part = shard_presence(shard, keys, manifest)
        if part is None and parts:
            raise UserError(
                f"shard {shard.path}, key {keys[0]}: does not say which slots are present, videos before it do"
            )
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts) if parts else None


def shard_presence(
    shard: ShardReader, keys: Sequence[str], manifest: Manifest
) -> np.ndarray | None:
    """(n, T, S) bool of the videos `keys` of one shard, as `load_presence`."""
    there = [
        member
        for member in (TRUTH, MATCH)
        if keys and "present" in (shard.arrays(keys[0], member, ("present",)) or {})
    ]
    if not there:
        return None
    first = (shard.arrays(keys[0], there[0], ("present",)) or {})["present"]
    if len(first) < manifest.frames:
        return None
    array = np.empty((len(keys), manifest.frames, manifest.slots), bool)
    for row, key in zip(array, keys):
        present = (shard.arrays(key, there[0], ("present",)) or {}).get("present")
        if present is None or len(present) < manifest.frames or present.shape[1:] != row.shape[1:]:
            raise UserError(
                f"shard {shard.path}, key {key}: {there[0]} lacks the presence that others have; make the data set again"
            )
        row[...] = present[: manifest.frames]
    return array


class WindowTruth:
    """Labels of windows: `first` .. `end` are the window's frames, the last history frame is `last`. Arrays by (video, start).

    `frames` and `slots` are those of the slots' array (V, frames, slots, D). UserError if truth lacks an array or does not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        history_frames: int,
        pred_frames: int,
        frameskip: int,
        videos: int,
        contacts_only: bool,
    ) -> None:
        manifest = Manifest.load(folder)
        self.frames, self.slots = manifest.frames, manifest.slots
        self.steps = np.arange(history_frames + pred_frames) * frameskip
        self.second = frameskip * min(1, history_frames - 1)
        self.last = frameskip * (history_frames - 1)
        self.end = int(self.steps[-1])
        needed = ("contacts",) if contacts_only else ("contacts", "present", "position", "radius")
        truth = load_truth(
            folder,
            split,
            videos,
            needed if contacts_only else (*needed, "influence", "influence_horizon"),
        )
        if missing := [name for name in needed if name not in truth]:
            raise UserError(
                f"truth of split {split!r} in {folder} lacks {', '.join(missing)}; make the data set again"
            )
        self.counts = np.cumsum(
            self.table(truth["contacts"], "contacts", both=True), axis=1, dtype=np.uint8
        )
        self.influence: np.ndarray | None = None
        if contacts_only:
            return
        for name, shape in (("present", (self.slots,)), ("position", (self.slots, 2))):
            if truth[name].shape[1] < self.frames or truth[name].shape[2:] != shape:
                found = f"truth {name} of split {split!r} in {folder} is {truth[name].shape[1:]}"
                raise UserError(
                    f"{found}, but the slots have {self.frames} frames of {self.slots}; make the data set again"
                )
        self.present = np.ascontiguousarray(truth["present"][:, : self.frames], bool)
        self.position = np.ascontiguousarray(truth["position"][:, : self.frames], np.float32)
        self.reach = (NEAR * 2 * truth["radius"].astype(np.float32)) ** 2
        # Influence is stored for one horizon; for a window with another it would be a wrong label, so there is none.
        if "influence" in truth and (truth["influence_horizon"] == self.end - self.last).all():
            self.influence = self.table(truth["influence"], "influence", both=False)

    def table(self, rows: list[np.ndarray], name: str, *, both: bool) -> np.ndarray:
        """Rows (frame, i, j) of each video -> (V, frames, S, S) uint8, 1 at each row; `both` sets (frame, j, i) too."""
        table = np.zeros((len(rows), self.frames, self.slots, self.slots), np.uint8)
        video = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        frame, i, j = (
            np.concatenate([r.reshape(-1, 3) for r in rows]).astype(np.int64).T
            if rows
            else np.zeros((3, 0), np.int64)
        )
        if len(frame) and (
            min(frame.min(), i.min(), j.min()) < 0 or max(i.max(), j.max()) >= self.slots
        ):
            raise UserError(
                f"truth {name} holds a frame or slot that does not exist; rows must be (frame, slot, slot)"
            )
        shown = frame < self.frames  # the truth goes on behind the slots
        video, frame, i, j = video[shown], frame[shown], i[shown], j[shown]
        table[video, frame, i, j] = 1
        if both:
            table[video, frame, j, i] = 1
        return table

    def has_contact(self, windows: int) -> np.ndarray:
        """(V, windows) bool: whether any pair touches in the predicted interval of the window at each start 0 .. windows - 1."""
        later, before = (
            self.counts[:, self.end : self.end + windows],
            self.counts[:, self.last : self.last + windows],
        )
        return (later != before).any((2, 3))

    def labels(self, video: np.ndarray, start: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of windows (B,): keys and shapes as `ResidentWindows.gather` lists them."""
        at_first, at_second, at_last, at_end = (
            self.counts[video, start + f] for f in (0, self.second, self.last, self.end)
        )
        predicted = at_end != at_last
        frames = start[:, None] + self.steps
        later = start[:, None] + np.arange(self.last + 1, self.end + 1)
        position, seen = self.position[video[:, None], later], self.present[video[:, None], later]
        # One slot at a time against all: the full (B, F, S, S, 2) difference would be larger than the batch of slots.
        near = np.empty(predicted.shape, bool)
        for slot in range(self.slots):
            distance = ((position - position[:, :, slot : slot + 1]) ** 2).sum(-1)
            both = seen & seen[:, :, slot : slot + 1]
            near[:, slot] = ((distance < self.reach[video][:, None, None]) & both).any(1)
        near[:, np.arange(self.slots), np.arange(self.slots)] = False
        labels = {
            "present": self.present[video[:, None], frames],
            "position": self.position[video[:, None], frames],
            "contact": at_end != at_second,
            "contact_new": predicted & (at_last == at_first),
            "collides": predicted.any(-1),
            "near_miss": near & (at_end == at_first),
        }
        if self.influence is not None:
            labels["influence"] = self.influence[video, start + self.last].astype(bool)
        return labels
