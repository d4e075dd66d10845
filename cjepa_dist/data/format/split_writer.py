"""Writes the tars of one split.

    Sample ──check, convert──┬─> buffers ──a thread──> OpenShard (and its hash) ──┬──> ShardEntry
                             └─> slots ──another──> RunningStatistics ─────────┘

The same samples give the same bytes: no time is stored, neither in the tar nor in the npz.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset
import xxhash

from cjepa_dist.data.format.dtypes import all_finite, storage_dtype, to_storage_dtype
from cjepa_dist.data.format.journal import CompletedShards
from cjepa_dist.data.format.manifest import ShardEntry, question_type_letters
from cjepa_dist.data.format.manifest_checks import KEY
from cjepa_dist.data.format.sample import (
    ANNOTATION,
    MATCH,
    QUESTIONS,
    SLOT_ARRAYS,
    SLOTS,
    TRUTH,
    WORLDS,
    Sample,
    scene_index,
)
from cjepa_dist.data.format.statistics import RunningStatistics, slot_statistics
from cjepa_dist.data.format.tar import BLOCK_BYTES, json_bytes, npy_buffers, npz_bytes
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path

MAX_PENDING = 8  # samples that wait for the writing thread


class SplitWriter:
    """Writes one split's tars in `folder/split`.

    A new tar begins when `shard_bytes` would be exceeded; a larger sample has a tar of its own.
    `add` raises UserError, naming the key, for a sample whose slots are not finite (also after
    conversion to `dtype`) or differ in shape from those before, or whose key was used already.
    `close` returns the shards' entries for the manifest.

    One thread hashes and writes, another computes statistics; their errors are raised by a later
    `add`, or by `close`. `completed`: the complete shards of a stopped run; `written_keys` are
    theirs, and those added since. `on_complete(split, shape, entry)` is called for each new shard
    once it is safe on the disk.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        dtype: str = "float16",
        shard_bytes: int = 256 << 20,
        *,
        completed: CompletedShards | None = None,
        on_complete: Callable[[str, tuple[int, ...], ShardEntry], None] | None = None,
    ) -> None:
        storage_dtype(dtype)
        self.folder, self.split = Path(folder) / split, split
        self.dtype, self.shard_bytes = dtype, shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape = completed.shape if completed else None
        self.entries = list(completed.entries) if completed else []
        self.written_keys = {key for entry in self.entries for key in entry.keys}
        self.on_complete = on_complete
        self.shard: OpenShard | None = None
        self.writer_thread, self.statistics_thread = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.pending: collections.deque[Future[None]] = collections.deque()
        self.failed = False

    def add(self, sample: Sample) -> None:
        """Check a sample and pass it to the threads. Do not change its arrays afterwards."""
        if sample.key in self.written_keys:
            raise UserError(f"split {self.split!r} has key {sample.key} twice")
        slots = self.convert_slots(sample)
        annotation = sample.annotation or {"scene_index": scene_index(sample.key)}
        members = {SLOTS: b"".join(npy_buffers(slots))}
        if ANNOTATION not in sample.stored:
            members[ANNOTATION] = json_bytes(annotation)
        if sample.questions is not None:
            members[QUESTIONS] = json_bytes(sample.questions)
        for member, content in (
            (TRUTH, sample.truth),
            (WORLDS, sample.worlds),
            (MATCH, sample.match),
        ):
            if content is not None:
                arrays = {name: np.asarray(array) for name, array in content.items()}
                for name in arrays.keys() & set(SLOT_ARRAYS):
                    arrays[name] = self.convert(sample.key, arrays[name])
                members[member] = npz_bytes(arrays)
        members |= sample.stored
        self.written_keys.add(sample.key)
        converted = sample.slots is not None and slots.dtype != sample.slots.dtype
        original = sample.slots if converted else None
        self.submit(
            self.write_sample,
            sample.key,
            members,
            self.statistics_thread.submit(slot_statistics, slots, original),
            question_type_letters(sample.questions),
        )

    def convert_slots(self, sample: Sample) -> np.ndarray:
        """A sample's slots in the stored type. UserError for a bad key or shape."""
        key, slots = sample.key, sample.slots
        where = f"split {self.split!r}, key {key}"
        # A '.' ends the key in webdataset.
        if not KEY.fullmatch(key):
            raise UserError(f"{where}: a key must be 1 to 80 letters, digits, '_' and '-'")
        if slots is None or slots.ndim != 3 or slots.size == 0:
            found = None if slots is None else slots.shape
            raise UserError(f"{where}: slots must be (frames, slots, slot_dim), got {found}")
        if self.shape not in (None, slots.shape):
            raise UserError(
                f"{where}: slots are {slots.shape}, those before were {self.shape}; "
                "all videos must agree"
            )
        converted = self.convert(key, slots)
        self.shape = slots.shape
        return converted

    def convert(self, key: str, array: np.ndarray) -> np.ndarray:
        converted = to_storage_dtype(array, self.dtype)
        if not all_finite(converted):
            cause = "a value that is not finite (NaN or infinity)"
            if array.dtype.kind == "f" and np.isfinite(array).all():
                cause = f"a value too large for {self.dtype}"
            raise UserError(f"split {self.split!r}, key {key}: a slot holds {cause}")
        return converted

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run `work` in the writing thread, unless something failed there before."""

        def attempt() -> None:
            if self.failed:  # a shard that lacks a sample must not be completed
                return
            try:
                work(*arguments)
            except BaseException:
                self.failed = True
                raise

        self.pending.append(self.writer_thread.submit(attempt))
        while len(self.pending) > MAX_PENDING:
            self.pending.popleft().result()

    def write_sample(
        self,
        key: str,
        members: dict[str, bytes],
        statistics: Future[RunningStatistics],
        question_types: str,
    ) -> None:
        """In the thread: append a sample to the open shard, or to a new one if it is full."""
        size = sum(
            BLOCK_BYTES + -(-len(content) // BLOCK_BYTES) * BLOCK_BYTES
            for content in members.values()
        )
        if self.shard is not None and self.shard.tar.tarstream.offset + size > self.shard_bytes:
            self.finish_shard()
        if self.shard is None:
            self.shard = OpenShard(self.folder / f"{len(self.entries):06d}.tar")
        self.shard.tar.write({"__key__": key, **members})
        self.shard.keys.append(key)
        self.shard.question_types.append(question_types)
        self.shard.statistics.merge(statistics.result())

    def finish_shard(self) -> None:
        """In the thread: complete the open shard."""
        if self.shard is not None:
            self.entries.append(self.shard.close())
            self.shard = None
            if self.on_complete is not None:
                fsync_path(self.folder)
                self.on_complete(self.split, self.shape, self.entries[-1])  # type: ignore[arg-type]

    def close(self) -> list[ShardEntry]:
        """Complete the last shard and wait until everything is on the disk."""
        self.submit(self.finish_shard)
        self.drain()
        self.writer_thread.shutdown()
        self.statistics_thread.shutdown()
        fsync_path(self.folder)
        return self.entries

    def drain(self) -> None:
        """Wait until what was added is written, but for the shard that is still open."""
        while self.pending:
            self.pending.popleft().result()

    def abort(self) -> None:
        """Stop the threads; the open shard stays incomplete."""
        self.failed = True
        self.writer_thread.shutdown(cancel_futures=True)
        self.statistics_thread.shutdown(cancel_futures=True)
        if self.shard is not None:
            with contextlib.suppress(OSError):  # perhaps the disk is full, and that is why we abort
                self.shard.file.close()


class OpenShard:
    """A tar that is being written; hashed on the way, so that it need not be read again."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest = path, 0, xxhash.xxh3_64()
        self.keys: list[str] = []
        self.question_types: list[str] = []
        self.statistics = RunningStatistics()
        self.file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115  (closed by close)
        # Without times, so that the same samples give the same bytes.
        self.tar = webdataset.TarWriter(self, encoder=False, mtime=0)

    def write(self, buffer: Any) -> None:
        if not self.file.closed:  # by an abort, after which the tar may still flush
            self.digest.update(buffer)
            self.size += self.file.write(buffer)

    def close(self) -> ShardEntry:
        """Write the end of the tar, flush it to the disk, and return its entry."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return ShardEntry(
            name=self.path.name,
            samples=len(self.keys),
            bytes=self.size,
            xxh3=self.digest.hexdigest(),
            keys=self.keys,
            mean=self.statistics.mean.tolist(),
            squared_deviations=self.statistics.squared_deviations.tolist(),
            conversion_error=[self.statistics.squared_error, self.statistics.max_error],
            question_types=self.question_types if any(self.question_types) else [],
        )
