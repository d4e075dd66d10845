"""The ground truth of simulated videos, and which slots are present.

truth.npz of each video ──load_truth──> arrays (V, ...): labels of windows, evaluation
truth.npz or match.npz  ──load_presence──> (V, T, S) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import select_shards
from cjepa_dist.data.format.sample import MATCH, TRUTH
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.errors import UserError

WORLD_ARRAYS = (
    "counterfactual_removed",
    "counterfactual_slots",
    "counterfactual_position",
    "counterfactual_present",
    "counterfactual_contacts",
)

# Arrays whose length differs from video to video.
RAGGED_ARRAYS = ("contacts", "influence", *WORLD_ARRAYS)

FACTUAL_ARRAYS = (
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
    names: Sequence[str] = (*FACTUAL_ARRAYS, "future_slots"),
    member: str = TRUTH,
) -> dict[str, Any]:
    """Ground truth (or another npz member) of a split, or of its first `videos`.

    Returns {name: array (V, ...)}; those of RAGGED_ARRAYS are lists of V arrays. `names` that no
    video has are left out. UserError, naming shard and key, if a video has no truth, or if its
    names or shapes differ from those of the videos before.
    """
    manifest = Manifest.load(folder)
    columns: dict[str, list[np.ndarray]] = {}
    count = 0
    for entry, keys in select_shards(manifest, split, videos):
        with ShardReader(folder, split, entry) as shard:
            for key in keys:
                where = f"shard {shard.path}, key {key}"
                truth = shard.read_arrays(key, member, names)
                if truth is None:
                    raise UserError(f"{where}: has no {member}; only simulated data has truth")
                if count and truth.keys() != columns.keys():
                    raise UserError(
                        f"{where}: truth has {sorted(truth)}, the videos before {sorted(columns)}"
                    )
                for name, array in truth.items():
                    column = columns.setdefault(name, [])
                    if column and name not in RAGGED_ARRAYS and array.shape != column[0].shape:
                        raise UserError(
                            f"{where}: truth {name} is {array.shape}, "
                            f"before it was {column[0].shape}"
                        )
                    column.append(array)
                count += 1
    return {
        name: column if name in RAGGED_ARRAYS else np.stack(column)
        for name, column in columns.items()
    }


def load_presence(folder: str | Path, split: str, videos: int = 0) -> np.ndarray | None:
    """(V, T, S) bool, T as in the slots: whether a slot holds an object in view.

    Read from the ground truth, else from what `data_prep.match` wrote. None where neither is there,
    or where it ends before the slots do (they were rolled out since). If the first video has it,
    all must have it.
    """
    manifest = Manifest.load(folder)
    parts: list[np.ndarray] = []
    for entry, keys in select_shards(manifest, split, videos):
        with ShardReader(folder, split, entry) as shard:
            part = read_presence(shard, keys, manifest)
        if part is None and parts:
            raise UserError(
                f"shard {shard.path}, key {keys[0]}: does not say which slots are present, "
                "videos before it do"
            )
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts) if parts else None


def read_presence(shard: ShardReader, keys: Sequence[str], manifest: Manifest) -> np.ndarray | None:
    """(n, T, S) bool of the videos `keys` of one shard, as `load_presence`."""

    def present_of(key: str, member: str) -> np.ndarray | None:
        return (shard.read_arrays(key, member, ("present",)) or {}).get("present")

    members = [m for m in (TRUTH, MATCH) if keys and present_of(keys[0], m) is not None]
    if not members:
        return None
    member = members[0]
    first = present_of(keys[0], member)
    if first is None or len(first) < manifest.frames:
        return None
    array = np.empty((len(keys), manifest.frames, manifest.slots), bool)
    for row, key in zip(array, keys):
        present = present_of(key, member)
        if present is None or len(present) < manifest.frames or present.shape[1:] != row.shape[1:]:
            raise UserError(
                f"shard {shard.path}, key {key}: {member} lacks the presence that others have; "
                "make the data set again"
            )
        row[...] = present[: manifest.frames]
    return array
