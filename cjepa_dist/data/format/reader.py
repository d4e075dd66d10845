"""Slot shards: webdataset tars, one sample a video, read and checked.

    DIR/manifest.json             what there is: counts, keys, checksums (`manifest.py`)
    DIR/<split>/000000.tar ...    video_00000.json  .slots.npy  [.questions.json]  [.truth.npz]  [.worlds.npz]  [.match.npz]

    writer.py: DatasetWriter ──> tars + manifest ──┬─> read_split    samples, one at a time, members of choice
                                                   ├─> load_slots    one array (V, T, S, D), straight from the page cache
                                                   └─> verify.py     list of faults

Any webdataset user can read the tars. Here they are read by their headers instead: one `pread` a header and one a member that is
wanted, so truth (which can be far larger than the slots) costs nothing where it is not asked for, and anything
that webdataset passes over in silence (an early end, a bad header, a missing sample) is an error that names shard and key.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cjepa_dist.data.format.dtypes import finite, stored
from cjepa_dist.data.format.manifest import Manifest, ShardEntry
from cjepa_dist.data.format.split_writer import Sample, SplitWriter
from cjepa_dist.data.format.storage import (
    DEFAULT_RETRY,
    RetryPolicy,
    download_to_memory,
    is_remote,
    local_copy,
)
from cjepa_dist.data.format.tar import BLOCK, Extent, Part, npy_header, parse_header, parse_npy
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.shared_memory import node_array
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum

__all__ = [
    "DatasetWriter",
    "Manifest",
    "Sample",
    "ShardEntry",
    "SplitWriter",
    "load_slots",
    "read_split",
]

SLOTS, ANNOTATION, QUESTIONS, TRUTH, WORLDS, MATCH = (
    "slots.npy",
    "json",
    "questions.json",
    "truth.npz",
    "worlds.npz",
    "match.npz",
)
MEMBERS = (SLOTS, ANNOTATION, QUESTIONS, TRUTH, WORLDS, MATCH)


def read_split(
    folder: str | Path, split: str, members: Sequence[str] = MEMBERS, *, videos: int = 0
) -> Iterator[Sample]:
    """The samples of a split in order; only `members` are read, the fields of the others are None. `videos` > 0: the first so many.

    Counts and keys are checked against the manifest, shape, type and finiteness of slots too. UserError naming shard and key.
    """
    manifest = Manifest.load(folder)
    for entry, keys in select_shards(manifest, split, videos):
        with ShardReader(folder, split, entry) as shard:
            for key in keys:
                yield Sample(
                    key=key,
                    slots=shard.slots(key, manifest) if SLOTS in members else None,
                    annotation=shard.json(key, ANNOTATION) if ANNOTATION in members else None,
                    questions=shard.json(key, QUESTIONS) if QUESTIONS in members else None,
                    truth=shard.arrays(key, TRUTH) if TRUTH in members else None,
                    worlds=shard.arrays(key, WORLDS) if WORLDS in members else None,
                    match=shard.arrays(key, MATCH) if MATCH in members else None,
                )


def load_slots(
    folder: str | Path, split: str, videos: int = 0, order: np.ndarray | None = None
) -> np.ndarray:
    """All slots of a split (or of its first `videos`) as one array (V, T, S, D) in the stored type; one copy a node (`shared.py`).

    Video v is `Manifest.load(folder).keys(split)[v]`, its frames as they are or in `order` (T,). UserError naming shard and key if
    anything is missing, of another shape or type, or not finite; if there are fewer than `videos`.
    """
    manifest = Manifest.load(folder)
    chosen = list(select_shards(manifest, split, videos))

    def fill(array: np.ndarray) -> None:
        row = 0
        for entry, keys in chosen:
            with ShardReader(folder, split, entry) as shard:
                for key in keys:
                    shard.slots(key, manifest, into=array[row], order=order)
                    row += 1

    count = sum(len(keys) for _, keys in chosen)
    what = repr(
        (
            os.path.realpath(folder),
            split,
            count,
            [entry.xxh3 for entry, _ in chosen],
            order if order is None else order.tolist(),
        )
    )
    return node_array(what, (count, *manifest.shape), stored(manifest.dtype), fill)


def select_shards(
    manifest: Manifest, split: str, videos: int
) -> Iterator[tuple[ShardEntry, list[str]]]:
    """The shards that hold the first `videos` (0 = all) videos, each with the keys that are wanted from it."""
    count = manifest.count(split)
    if videos < 0 or videos > count:
        raise UserError(
            f"videos={videos}, but split {split!r} has {count}; give a number from 1 to {count}, or 0 for all"
        )
    left = videos or count
    for entry in manifest.shards(split):
        if left <= 0:
            return
        yield entry, entry.keys[:left]
        left -= len(entry.keys)


class ShardReader:
    """One open tar, checked against its manifest entry; members are read by offset. A context manager.

    UserError on opening: the file is missing, has another length, is no tar from end to end, or holds other keys than the manifest says.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        entry: ShardEntry,
        *,
        verified: bool = False,
        patience: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """`verified`: its bytes are compared with the manifest's xxh3 first, as a remote one's always are."""
        self.path = f"{folder if is_remote(folder) else local_copy(folder)}/{split}/{entry.name}"
        if is_remote(folder):
            self.descriptor = download_to_memory(self.path, entry.bytes, entry.xxh3, patience)
        else:
            try:
                self.descriptor = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"shard {self.path} cannot be opened ({error.strerror}); restore it or make the data set again"
                ) from error
        try:
            size = os.fstat(self.descriptor).st_size
            if size != entry.bytes:
                what = "truncated" if size < entry.bytes else "longer than written"
                raise UserError(
                    f"shard {self.path} is {what}: {size} bytes, the manifest says {entry.bytes}; run data_prep.verify"
                )
            if verified and not is_remote(folder) and file_checksum(self.path) != entry.xxh3:
                raise UserError(
                    f"shard {self.path} is damaged: its xxh3 is not the manifest's; restore it, or make the data set again"
                )
            self.members = self.scan(size)
            self.check_keys(entry.keys)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)

    def scan(self, size: int) -> dict[str, dict[str, Extent]]:
        """{key: {member: extent}} from the tar headers alone. Strict: a plain ustar archive up to its two zero blocks, nothing else."""
        members: dict[str, dict[str, Extent]] = {}
        offset, key = 0, "(none)"
        while True:
            header = os.pread(self.descriptor, BLOCK, offset)
            if header == bytes(BLOCK) and os.pread(self.descriptor, BLOCK, offset + BLOCK) == bytes(
                BLOCK
            ):
                return members
            try:
                name, length = parse_header(header)
            except ValueError as error:
                raise UserError(
                    f"shard {self.path} is damaged at byte {offset}, after key {key}: {error}; run data_prep.verify"
                ) from None
            key, _, member = name.partition(".")
            if offset + BLOCK + length > size:
                raise UserError(f"shard {self.path} ends within {name}; run data_prep.verify")
            if member in members.setdefault(key, {}):
                raise UserError(f"shard {self.path} holds {name} twice; run data_prep.verify")
            members[key][member] = Extent(offset + BLOCK, length)
            offset += BLOCK + -(-length // BLOCK) * BLOCK

    def check_keys(self, expected: list[str]) -> None:
        found = list(self.members)
        if found == expected:
            return
        missing = [key for key in expected if key not in self.members]
        extra = sorted(set(found) - set(expected))
        problem = "has its keys in another order"
        if missing or extra:
            problem = (
                f"lacks key {missing[0]}"
                if missing
                else f"holds key {extra[0]}, unknown to the manifest"
            )
        raise UserError(
            f"shard {self.path} {problem}: {len(found)} samples, the manifest says {len(expected)}; run data_prep.verify"
        )

    def slots(
        self,
        key: str,
        manifest: Manifest,
        into: np.ndarray | None = None,
        order: np.ndarray | None = None,
    ) -> np.ndarray:
        """Slots (T, S, D) of a video in the stored type, read into `into` if given, the frames in `order` (T,) if given.

        UserError if wrong in shape or type, or not finite.
        """
        extent = self.members[key].get(SLOTS)
        if extent is None:
            raise UserError(f"shard {self.path}, key {key}: has no {SLOTS}")
        try:
            shape, dtype, start = npy_header(
                os.pread(self.descriptor, min(extent.length, 128), extent.offset)
            )
        except ValueError as error:
            raise UserError(f"shard {self.path}, key {key}: {SLOTS} is damaged ({error})") from None
        if shape != manifest.shape or dtype != stored(manifest.dtype):
            raise UserError(
                f"shard {self.path}, key {key}: slots are {dtype} {shape}, the manifest says {manifest.dtype} {manifest.shape}"
            )
        array = np.empty(shape, dtype) if into is None or order is not None else into
        if (
            start + array.nbytes != extent.length
            or os.preadv(self.descriptor, [array.data], extent.offset + start) != array.nbytes
        ):
            raise UserError(
                f"shard {self.path}, key {key}: {SLOTS} has {extent.length} bytes, {start + array.nbytes} expected"
            )
        if not finite(array):
            raise UserError(
                f"shard {self.path}, key {key}: a slot holds a value that is not finite (NaN or infinity)"
            )
        return (
            array if order is None else np.take(array, order, axis=0, out=into, mode="clip")
        )  # "raise" would copy to a buffer first

    def stack(
        self, keys: Sequence[str], manifest: Manifest, order: np.ndarray | None = None
    ) -> np.ndarray:
        """Slots (n, T, S, D) of the videos `keys`, as `slots`."""
        array = np.empty((len(keys), *manifest.shape), stored(manifest.dtype))
        for key, video in zip(keys, array):
            self.slots(key, manifest, into=video, order=order)
        return array

    def json(self, key: str, member: str) -> dict[str, Any] | None:
        """A JSON member; None if the sample has none. UserError if it is damaged."""
        extent = self.members[key].get(member)
        if extent is None:
            return None
        try:
            return json.loads(os.pread(self.descriptor, extent.length, extent.offset))
        except ValueError as error:
            raise UserError(
                f"shard {self.path}, key {key}: {member} is no JSON ({error})"
            ) from None

    def field(self, key: str, member: str, name: str) -> Any:
        """One top-level field of a JSON member, without parsing the others: most of an annotation is the motion. None without it."""
        extent = self.members[key].get(member)
        text = (
            ""
            if extent is None
            else os.pread(self.descriptor, extent.length, extent.offset).decode(errors="replace")
        )
        found = re.search(rf'"{name}":\s*', text)
        try:
            return None if found is None else json.JSONDecoder().raw_decode(text, found.end())[0]
        except ValueError as error:
            raise UserError(
                f"shard {self.path}, key {key}: {name} in {member} is no JSON ({error})"
            ) from None

    def arrays(
        self, key: str, member: str, names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray] | None:
        """The arrays of an npz member, or those of `names` that it has; None without the member. UserError if it is damaged (CRC)."""
        extent = self.members[key].get(member)
        if extent is None:
            return None
        try:
            with zipfile.ZipFile(Part(self.descriptor, extent)) as archive:
                there = archive.namelist()
                wanted = (
                    there
                    if names is None
                    else [f"{name}.npy" for name in names if f"{name}.npy" in there]
                )
                return {name.removesuffix(".npy"): parse_npy(archive.read(name)) for name in wanted}
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError) as error:
            raise UserError(
                f"shard {self.path}, key {key}: {member} is damaged ({error})"
            ) from None
