"""Reads data sets: folders of shards, which are webdataset tars with one sample a video.

    DIR/manifest.json             counts, keys, checksums (`manifest.py`)
    DIR/<split>/000000.tar ...    video_00000.json  .slots.npy
                                  [.questions.json]  [.truth.npz]  [.worlds.npz]  [.match.npz]

    DatasetWriter ──> tars + manifest ──┬──> read_split   samples, one at a time, chosen members
                                        ├──> load_slots   one array (V, T, S, D)
                                        └──> verify.py    list of faults

Any webdataset user can read the tars. Here they are read by `shard_reader.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from cjepa_dist.data.format.dtypes import storage_dtype
from cjepa_dist.data.format.manifest import Manifest, ShardEntry
from cjepa_dist.data.format.sample import (
    ANNOTATION,
    MATCH,
    MEMBERS,
    QUESTIONS,
    SLOTS,
    TRUTH,
    WORLDS,
    Sample,
)
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.shared_memory import shared_array
from cjepa_dist.errors import UserError


def read_split(
    folder: str | Path,
    split: str,
    members: Sequence[str] = MEMBERS,
    *,
    videos: int = 0,
    annotation_fields: Sequence[str] = (),
) -> Iterator[Sample]:
    """The samples of a split in order, or its first `videos`.

    Only `members` and `annotation_fields` are read, see `read_sample`. Counts and keys are checked
    against the manifest; slots must be finite and of its shape and type. UserError naming shard
    and key.
    """
    manifest = Manifest.load(folder)
    for shard, key in open_videos(folder, split, videos):
        yield read_sample(shard, key, manifest, members, annotation_fields)


def read_video(
    folder: str | Path, split: str, number: int, members: Sequence[str] = MEMBERS
) -> Sample:
    """Video `number` (from 0) of a split, as `read_split`, without reading those before it.

    UserError if the split has no such video.
    """
    manifest = Manifest.load(folder)
    count, before = manifest.count(split), 0
    for entry in manifest.shards(split):
        if 0 <= number - before < len(entry.keys):
            with ShardReader(folder, split, entry) as shard:
                return read_sample(shard, entry.keys[number - before], manifest, members)
        before += len(entry.keys)
    raise UserError(
        f"there is no video {number} in split {split!r} of {folder}: it has {count}, counted from 0"
    )


def read_sample(
    shard: ShardReader,
    key: str,
    manifest: Manifest,
    members: Sequence[str] = MEMBERS,
    annotation_fields: Sequence[str] = (),
) -> Sample:
    """The `members` of one video of an open shard; the fields of the others are None.

    `annotation_fields`: only these of the annotation, None where it lacks one; empty = all. Most of
    an annotation is motion, which takes longer to parse than all else takes to read.
    """
    annotation = None
    if ANNOTATION in members:
        annotation = shard.read_json(key, ANNOTATION, annotation_fields)
    return Sample(
        key=key,
        slots=shard.read_slots(key, manifest) if SLOTS in members else None,
        annotation=annotation,
        questions=shard.read_json(key, QUESTIONS) if QUESTIONS in members else None,
        truth=shard.read_arrays(key, TRUTH) if TRUTH in members else None,
        worlds=shard.read_arrays(key, WORLDS) if WORLDS in members else None,
        match=shard.read_arrays(key, MATCH) if MATCH in members else None,
    )


def open_videos(
    folder: str | Path, split: str, videos: int = 0
) -> Iterator[tuple[ShardReader, str]]:
    """(open shard, key) of the videos of a split in order, or of its first `videos`."""
    for entry, keys in select_shards(Manifest.load(folder), split, videos):
        with ShardReader(folder, split, entry) as shard:
            for key in keys:
                yield shard, key


def batched(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of `size` consecutive samples; the last one may be shorter."""
    while batch := list(islice(samples, size)):
        yield batch


def load_slots(
    folder: str | Path,
    split: str,
    videos: int = 0,
    frame_order: np.ndarray | None = None,
    visit: Callable[[ShardReader, str], None] | None = None,
) -> np.ndarray:
    """All slots of a split (or of its first `videos`) as one array (V, T, S, D) in the stored type.

    One copy a node (`shared_memory.py`). Video v is `Manifest.load(folder).keys(split)[v]`, its
    frames as stored or in `frame_order` (T,). UserError naming shard and key if anything is
    missing, of another shape or type, or not finite; or if there are fewer than `videos`.

    `visit(shard, key)` is called for every video, to read other members in the same pass. Only in
    the process that reads: the others of its node get the array without a pass over the shards.
    """
    manifest = Manifest.load(folder)
    chosen = list(select_shards(manifest, split, videos))

    def fill(array: np.ndarray) -> None:
        for row, (shard, key) in enumerate(open_videos(folder, split, videos)):
            shard.read_slots(key, manifest, into=array[row], frame_order=frame_order)
            if visit is not None:
                visit(shard, key)

    count = sum(len(keys) for _, keys in chosen)
    key = repr(
        (
            os.path.realpath(folder),
            split,
            count,
            [entry.xxh3 for entry, _ in chosen],
            frame_order if frame_order is None else frame_order.tolist(),
        )
    )
    return shared_array(key, (count, *manifest.shape), storage_dtype(manifest.dtype), fill)


def select_shards(
    manifest: Manifest, split: str, videos: int
) -> Iterator[tuple[ShardEntry, list[str]]]:
    """The shards of the first `videos` (0 = all) videos, each with the keys to read from it."""
    count = manifest.count(split)
    if videos < 0 or videos > count:
        raise UserError(
            f"videos={videos}, but split {split!r} has {count}; "
            f"give a number from 1 to {count}, or 0 for all"
        )
    left = videos or count
    for entry in manifest.shards(split):
        if left <= 0:
            return
        yield entry, entry.keys[:left]
        left -= len(entry.keys)
