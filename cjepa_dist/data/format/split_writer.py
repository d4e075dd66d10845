"""Writes the tars of one split.

    Sample ──check, narrow──┬─> pieces ──one thread──> OpenShard: hashed as it is written ──┬──flush──> ShardEntry
                            └─> slots ──another──> Moments ─────────────────────────────────┘

The same samples give the same bytes: no time of writing is stored, in the tar or in the npz.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from cjepa_dist.data.format.dtypes import finite, narrow, stored
from cjepa_dist.data.format.journal import CompletedShards
from cjepa_dist.data.format.manifest import ShardEntry, initials
from cjepa_dist.data.format.statistics import RunningStatistics, slot_statistics
from cjepa_dist.data.format.tar import npy_pieces, npz, tar_end, tar_pieces, to_json
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path

SLOT_ARRAYS = (
    "future_slots",
    "counterfactual_slots",
    "slots",
)  # arrays of npz members that are slots: stored in the type of the slots
AHEAD = 8  # samples that wait for the writing thread


@dataclass
class Sample:
    """One video. `slots` (T, S, D); `annotation` and `questions` CLEVRER's JSON; the others as in docs/design.md; None = absent."""

    key: str
    slots: np.ndarray | None = None
    annotation: dict[str, Any] | None = None
    questions: dict[str, Any] | None = None
    truth: dict[str, np.ndarray] | None = None
    worlds: dict[str, np.ndarray] | None = None
    match: dict[str, np.ndarray] | None = None


class SplitWriter:
    """Writes one split's tars in `folder/split`, a new one when `shard_bytes` would be passed (a larger sample has one to itself).

    `add` raises UserError, naming the key, for a sample whose slots are not finite (also after conversion to `dtype`), differ
    in shape from those before, or whose key was there already. `close` returns the shards' entries for the manifest.
    A thread hashes and writes, another measures: what fails there is raised by a later `add`, or by `close`. `done` are whole shards of
    a stopped run, and `finished(split, shape, entry)` is called for each new one when it is safe on the disk.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        dtype: str = "float16",
        shard_bytes: int = 256 << 20,
        *,
        done: CompletedShards | None = None,
        finished: Callable[[str, tuple[int, ...], ShardEntry], None] | None = None,
    ) -> None:
        stored(dtype)
        self.folder, self.split, self.dtype, self.shard_bytes = (
            Path(folder) / split,
            split,
            dtype,
            shard_bytes,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape, self.entries = (done.shape, list(done.entries)) if done else (None, [])
        self.known = {key for entry in self.entries for key in entry.keys}
        self.finished = finished
        self.shard: OpenShard | None = None
        self.thread, self.measuring = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.pending: collections.deque[Future[None]] = collections.deque()
        self.broken = False

    def add(self, sample: Sample) -> None:
        """Check a sample and hand it to the thread. Its arrays must not be changed afterwards."""
        if sample.key in self.known:
            raise UserError(f"split {self.split!r} has key {sample.key} twice")
        slots = self.checked(sample)
        members: dict[str, list[Any]] = {
            "json": [to_json(sample.annotation or {"scene_index": scene_index(sample.key)})],
            "slots.npy": npy_pieces(slots),
        }
        if sample.questions is not None:
            members["questions.json"] = [to_json(sample.questions)]
        for member, content in (
            ("truth.npz", sample.truth),
            ("worlds.npz", sample.worlds),
            ("match.npz", sample.match),
        ):
            if content is not None:
                arrays = {name: np.asarray(array) for name, array in content.items()}
                members[member] = [
                    npz(
                        {
                            k: self.narrow(sample.key, v) if k in SLOT_ARRAYS else v
                            for k, v in arrays.items()
                        }
                    )
                ]
        pieces = [
            piece
            for name in sorted(members)
            for piece in tar_pieces(f"{sample.key}.{name}", members[name])
        ]
        self.known.add(sample.key)
        given = None if slots.dtype == sample.slots.dtype else sample.slots  # type: ignore[union-attr]
        self.later(
            self.put,
            sample.key,
            pieces,
            self.measuring.submit(slot_statistics, slots, given),
            initials(sample.questions),
        )

    def checked(self, sample: Sample) -> np.ndarray:
        where = f"split {self.split!r}, key {sample.key}"
        if (
            not sample.key
            or "." in sample.key
            or "/" in sample.key
            or len(sample.key.encode()) > 80
        ):
            raise UserError(
                f"{where}: a key must be 1 to 80 bytes without '.' and '/'"
            )  # '.' ends the key in webdataset
        if sample.slots is None or sample.slots.ndim != 3 or sample.slots.size == 0:
            raise UserError(
                f"{where}: slots must be (frames, slots, slot_dim), got {None if sample.slots is None else sample.slots.shape}"
            )
        if self.shape not in (None, sample.slots.shape):
            raise UserError(
                f"{where}: slots are {sample.slots.shape}, those before were {self.shape}; all videos must agree"
            )
        self.shape = sample.slots.shape
        return self.narrow(sample.key, sample.slots)

    def narrow(self, key: str, array: np.ndarray) -> np.ndarray:
        narrowed = narrow(array, self.dtype)
        if not finite(narrowed):
            cause = "a value that is not finite (NaN or infinity)"
            if array.dtype.kind == "f" and np.isfinite(array).all():
                cause = f"a value too large for {self.dtype}"
            raise UserError(
                f"split {self.split!r}, key {key}: a slot holds {cause}; nothing was written"
            )
        return narrowed

    def later(self, work: Callable[..., None], *arguments: Any) -> None:
        def attempt() -> None:
            if self.broken:  # a shard with a hole must not be finished
                return
            try:
                work(*arguments)
            except BaseException:
                self.broken = True
                raise

        self.pending.append(self.thread.submit(attempt))
        while len(self.pending) > AHEAD:
            self.pending.popleft().result()

    def put(
        self, key: str, pieces: list[Any], moments: Future[RunningStatistics], asked: str
    ) -> None:
        """In the thread: append a sample to the open shard, or to a new one where it would grow too large."""
        size = sum(memoryview(piece).nbytes for piece in pieces)
        if self.shard is not None and self.shard.size + size > self.shard_bytes:
            self.finish()
        if self.shard is None:
            self.shard = OpenShard(self.folder / f"{len(self.entries):06d}.tar")
        for piece in pieces:
            self.shard.write(piece)
        self.shard.keys.append(key)
        self.shard.asked.append(asked)
        self.shard.moments.merge(moments.result())

    def finish(self) -> None:
        """In the thread: end the open shard."""
        if self.shard is not None:
            self.entries.append(self.shard.close())
            self.shard = None
            if self.finished is not None:
                fsync_path(self.folder)
                self.finished(self.split, self.shape, self.entries[-1])  # type: ignore[arg-type]

    def close(self) -> list[ShardEntry]:
        """End the last shard and wait until all is on the disk."""
        self.later(self.finish)
        while self.pending:
            self.pending.popleft().result()
        self.thread.shutdown()
        self.measuring.shutdown()
        fsync_path(self.folder)
        return self.entries

    def abandon(self) -> None:
        """Stop the thread; the open shard stays unfinished."""
        self.broken = True
        self.thread.shutdown(cancel_futures=True)
        self.measuring.shutdown(cancel_futures=True)
        if self.shard is not None:
            with contextlib.suppress(OSError):  # a full disk is what may have brought us here
                self.shard.file.close()


class OpenShard:
    """A tar that is being written, hashed on the way, so that it need not be read again; `moments` of its videos."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest, self.keys, self.moments = (
            path,
            0,
            xxhash.xxh3_64(),
            list[str](),
            RunningStatistics(),
        )
        self.asked: list[str] = []
        self.file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115  (closed by close)

    def write(self, piece: Any) -> None:
        self.digest.update(piece)
        self.size += self.file.write(piece)

    def close(self) -> ShardEntry:
        """End mark, flush to the disk, entry."""
        self.write(tar_end(self.size))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        moments = self.moments
        spread = moments.mean.tolist(), moments.squares.tolist(), [moments.lost, moments.largest]
        asked = self.asked if any(self.asked) else []
        return ShardEntry(
            self.path.name,
            len(self.keys),
            self.size,
            self.digest.hexdigest(),
            self.keys,
            *spread,
            asked,
        )


def scene_index(key: str) -> int:
    digits = "".join(c for c in key if c.isdigit())
    return int(digits or 0)
