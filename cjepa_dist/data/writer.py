"""Writes slot shards so that what is there is whole: everything happens in OUT.partial, which becomes OUT by one rename.

    Sample ──check──> SplitWriter ──> OUT.partial/<split>/%06d.tar (hashed as it is written, flushed)
                                                      └──> manifest.json ──rename──> OUT

The same samples give the same bytes: no time of writing is stored, in the tar or in the npz.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import xxhash

from cjepa_dist.data.manifest import Manifest, ShardEntry, partial, sync_folder
from cjepa_dist.errors import UserError

DTYPES = ("float16", "float32")
SLOT_ARRAYS = ("future_slots", "counterfactual_slots", "slots")  # arrays of npz members that are slots: stored in the type of the slots


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
    """

    def __init__(self, folder: str | Path, split: str, dtype: str = "float16", shard_bytes: int = 256 << 20) -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
        self.folder, self.split, self.dtype, self.shard_bytes = Path(folder) / split, split, np.dtype(dtype), shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape: tuple[int, ...] | None = None
        self.spread = Spread()
        self.entries: list[ShardEntry] = []
        self.keys: list[str] = []
        self.known: set[str] = set()
        self.file: HashedFile | None = None
        self.tar: Any = None

    def add(self, sample: Sample) -> None:
        if sample.key in self.known:
            raise UserError(f"split {self.split!r} has key {sample.key} twice")
        slots = self.checked(sample)
        annotation = sample.annotation or {"scene_index": scene_index(sample.key)}
        members: dict[str, bytes] = {"slots.npy": npy(slots), "json": to_json(annotation)}
        if sample.questions is not None:
            members["questions.json"] = to_json(sample.questions)
        for member, content in (("truth.npz", sample.truth), ("worlds.npz", sample.worlds), ("match.npz", sample.match)):
            if content is not None:
                arrays = {name: np.asarray(array) for name, array in content.items()}
                members[member] = npz({k: self.narrow(sample.key, v) if k in SLOT_ARRAYS else v for k, v in arrays.items()})
        size = sum(512 + -(-len(content) // 512) * 512 for content in members.values())
        if self.file is not None and self.file.size + size > self.shard_bytes:
            self.finish()
        if self.file is None:
            from webdataset import TarWriter  # here, since it imports torch: who only reads or verifies need not wait for it

            self.file = HashedFile(self.folder / f"{len(self.entries):06d}.tar")
            self.tar = TarWriter(self.file, encoder=False, mtime=0, compress=False)
        self.tar.write({"__key__": sample.key, **members})
        self.spread.add(slots)
        self.known.add(sample.key)
        self.keys.append(sample.key)

    def checked(self, sample: Sample) -> np.ndarray:
        where = f"split {self.split!r}, key {sample.key}"
        if not sample.key or "." in sample.key or "/" in sample.key or len(sample.key) > 80:
            raise UserError(f"{where}: a key must be 1 to 80 characters without '.' and '/'")  # '.' ends the key in webdataset
        if sample.slots is None or sample.slots.ndim != 3 or sample.slots.size == 0:
            raise UserError(f"{where}: slots must be (frames, slots, slot_dim), got {None if sample.slots is None else sample.slots.shape}")
        if self.shape not in (None, sample.slots.shape):
            raise UserError(f"{where}: slots are {sample.slots.shape}, those before were {self.shape}; all videos must agree")
        slots = self.narrow(sample.key, sample.slots)
        self.shape = slots.shape
        return slots

    def narrow(self, key: str, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrowed = np.ascontiguousarray(array, self.dtype)
        if not np.isfinite(narrowed).all():
            cause = f"a value too large for {self.dtype}" if np.isfinite(array).all() else "a value that is not finite (NaN or infinity)"
            raise UserError(f"split {self.split!r}, key {key}: a slot holds {cause}; nothing was written")
        return narrowed

    def finish(self) -> None:
        """Ends the open shard: end mark, flush to disk, entry."""
        if self.file is None:
            return
        self.tar.close()
        self.file.close()
        self.entries.append(ShardEntry(self.file.path.name, len(self.keys), self.file.size, self.file.digest.hexdigest(), self.keys))
        self.file, self.tar, self.keys = None, None, []

    def close(self) -> list[ShardEntry]:
        self.finish()
        sync_folder(self.folder)
        return self.entries


class DatasetWriter:
    """Context manager: `with DatasetWriter(out, encoder=..., source=...) as writer: writer.split("train").add(sample)`.

    `out` appears, whole, when the block ends without an error; otherwise nothing is left. `source` (JSON) says how the slots were made,
    `empty_slot` (D,) is the vector of a slot without an object, if known. UserError if `out` holds anything, if another process is
    writing it, or if splits disagree in shape. What a killed run left in `out.partial` is removed.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        encoder: str,
        source: dict[str, Any],
        dtype: str = "float16",
        shard_mb: int = 256,
        empty_slot: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
        self.out, self.partial = Path(out).absolute(), partial(out)
        self.encoder, self.source, self.dtype, self.shard_bytes = encoder, source, dtype, int(shard_mb) << 20
        self.empty_slot = None if empty_slot is None else [float(x) for x in empty_slot]
        self.writers: dict[str, SplitWriter] = {}
        self.lock = -1

    def __enter__(self) -> DatasetWriter:
        try:
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise UserError(f"{self.out} already holds something; choose another folder, or remove it first")
            if self.partial.is_dir():
                with held(self.partial):  # only a dead run's folder may be removed
                    shutil.rmtree(self.partial)
            self.partial.mkdir(parents=True)
            self.lock = acquire(self.partial)
        except OSError as error:
            raise UserError(f"cannot write {self.out}: {error.strerror} ({error.filename})") from error
        return self

    def split(self, name: str) -> SplitWriter:
        """The writer of a split, the same one at every call."""
        if name not in self.writers:
            if not name.isidentifier():
                raise UserError(f"split name {name!r}: must be letters, digits and underscores")
            self.writers[name] = SplitWriter(self.partial, name, self.dtype, self.shard_bytes)
        return self.writers[name]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.publish()
                return
        except BaseException:
            self.discard()
            raise
        finally:
            os.close(self.lock)
        self.discard()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {self.out}: {error.strerror}; nothing was kept") from error

    def discard(self) -> None:
        for writer in self.writers.values():
            with contextlib.suppress(OSError):  # a full disk is what may have brought us here
                writer.finish()
        shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self) -> None:
        splits = {name: writer.close() for name, writer in self.writers.items()}
        shapes = {name: writer.shape for name, writer in self.writers.items() if writer.shape is not None}
        if not shapes:
            raise UserError(f"there is not one video to write to {self.out}")
        if len(set(shapes.values())) > 1:
            raise UserError(f"splits differ in the shape of their slots: {shapes}")
        frames, slots, slot_dim = next(iter(shapes.values()))  # type: ignore[misc]
        if self.empty_slot is not None and len(self.empty_slot) != slot_dim:
            raise UserError(f"empty_slot has {len(self.empty_slot)} numbers, slots have {slot_dim}")
        mean, std = self.writers["train"].spread.result() if "train" in shapes else (None, None)
        manifest = Manifest(self.encoder, self.source, frames, slots, slot_dim, self.dtype, self.empty_slot, mean, std, splits)
        manifest.save(self.partial)
        os.rename(self.partial, self.out)
        sync_folder(self.out.parent)


class Spread:
    """Mean and standard deviation of each of D numbers over a stream of (..., D), in float64, stable (merges centred sums)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)

    def add(self, values: np.ndarray) -> None:
        values = values.reshape(-1, values.shape[-1]).astype(np.float64)
        count, mean = len(values), values.mean(0)
        values -= mean
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + np.einsum("nd,nd->d", values, values) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def result(self) -> tuple[list[float], list[float]]:
        return self.mean.tolist(), np.sqrt(self.squares / self.count).tolist()


class HashedFile:
    """A file that is written once and hashed on the way, so that it need not be read again. `tarfile` needs `write` alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest = path, 0, xxhash.xxh3_64()
        self.file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115  (closed by close)

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def acquire(folder: Path) -> int:
    """Lock a folder until the descriptor is closed or the process dies. UserError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is writing {folder}; wait for it or choose another folder") from None
    except OSError:
        pass  # a network file system without locks: nothing guards against two writers there
    return descriptor


@contextlib.contextmanager
def held(folder: Path) -> Any:
    descriptor = acquire(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array) if array.ndim else array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz like np.savez, with fixed times. Stored: deflating noisy float16 saves a tenth and costs ten times the write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), npy(arrays[name]))
    return buffer.getvalue()


def to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def scene_index(key: str) -> int:
    digits = "".join(c for c in key if c.isdigit())
    return int(digits or 0)
