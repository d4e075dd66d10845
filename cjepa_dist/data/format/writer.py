"""Writes data sets completely or not at all: in OUT.partial, which one rename makes OUT.

    Sample ──SplitWriter──> OUT.partial/<split>/%06d.tar ──┬──> journal.jsonl: complete shards,
                                                           │    from which a stopped run resumes
                                                           └──> manifest.json ──rename──> OUT

The same samples give the same bytes, however often the writing was stopped.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cjepa_dist.data.format import journal
from cjepa_dist.data.format.dtypes import storage_dtype
from cjepa_dist.data.format.journal import Journal, lock_folder
from cjepa_dist.data.format.manifest import Manifest, partial_folder
from cjepa_dist.data.format.manifest_checks import ManifestError, check_split_name
from cjepa_dist.data.format.split_writer import SplitWriter
from cjepa_dist.data.format.statistics import set_statistics
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path


class DatasetWriter:
    """A context manager that writes a data set.

        with DatasetWriter(out, encoder=..., source=...) as writer:
            writer.split("train").add(sample)

    `out` appears, complete, when the block ends without an error; otherwise nothing is left.
    `source` (JSON) says how the slots were made; `empty_slot` (D,) is the vector of a slot without
    an object, if known. UserError if `out` holds anything, if another process is writing it, or if
    splits differ in shape. What a killed run left in `out.partial` is removed.

    With `resume` (JSON: what the samples are made from) the complete shards of a stopped run with
    the same settings and the same `resume` are kept. What is in `writer.split(name).written_keys`
    is written already: the caller skips it and adds the rest in the same order. An interrupt, a
    signal and a full disk then leave those shards behind; any other error means bad input, and
    leaves nothing.
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
        resume: dict[str, Any] | None = None,
    ) -> None:
        storage_dtype(dtype)
        self.out, self.partial = Path(out).absolute(), partial_folder(out)
        self.encoder, self.source = encoder, source
        self.dtype, self.shard_bytes = dtype, int(shard_mb) << 20
        self.empty_slot = None if empty_slot is None else [float(x) for x in empty_slot]
        self.resume = resume
        self.writers: dict[str, SplitWriter] = {}
        self.journal: Journal | None = None
        self.lock = -1

    def __enter__(self) -> DatasetWriter:
        try:
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise UserError(
                    f"{self.out} already holds something; choose another folder, or remove it first"
                )
            self.partial.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(self.partial)
            if self.resume is None:
                journal.remove_files_except(self.partial, set())
            else:
                job = {
                    "encoder": self.encoder,
                    "source": self.source,
                    "dtype": self.dtype,
                    "bytes": self.shard_bytes,
                }
                self.journal = Journal(self.partial, {**job, "resume": self.resume})
        except OSError as error:
            raise UserError(
                f"cannot write {self.out}: {error.strerror} ({error.filename})"
            ) from error
        return self

    def split(self, name: str) -> SplitWriter:
        """The writer of a split, the same one at every call."""
        if name not in self.writers:
            try:
                check_split_name(name)
            except ManifestError as error:
                raise UserError(str(error)) from None
            self.writers[name] = SplitWriter(
                self.partial,
                name,
                self.dtype,
                self.shard_bytes,
                completed=self.journal.completed.get(name) if self.journal else None,
                on_complete=self.journal.add if self.journal else None,
            )
        return self.writers[name]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.publish()
        except BaseException as late:
            error = late
            raise
        finally:
            try:
                if error is not None:
                    self.clean_up(error)
            finally:
                os.close(self.lock)

    def clean_up(self, error: BaseException) -> None:
        """Keep the complete shards of a stopped run if it can resume; else nothing.

        A full disk becomes a UserError.
        """
        for writer in self.writers.values():
            writer.abort()
        stopped = isinstance(error, OSError) or not isinstance(error, Exception)
        if self.resume is None or not stopped:
            shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            left = (
                "nothing was kept"
                if self.resume is None
                else "free some space and run the same again: it resumes after the last full shard"
            )
            raise UserError(f"no space left for {self.out}: {error.strerror}; {left}") from error

    def publish(self) -> None:
        splits = {name: writer.close() for name, writer in self.writers.items()}
        shapes = {
            name: writer.shape for name, writer in self.writers.items() if writer.shape is not None
        }
        if not shapes:
            raise UserError(f"there is not one video to write to {self.out}")
        if len(set(shapes.values())) > 1:
            raise UserError(f"splits differ in the shape of their slots: {shapes}")
        frames, slots, slot_dim = next(iter(shapes.values()))  # type: ignore[misc]
        if self.empty_slot is not None and len(self.empty_slot) != slot_dim:
            raise UserError(f"empty_slot has {len(self.empty_slot)} numbers, slots have {slot_dim}")
        manifest = Manifest(
            self.encoder,
            self.source,
            frames,
            slots,
            slot_dim,
            self.dtype,
            self.empty_slot,
            splits=splits,
        )
        set_statistics(manifest)
        publish(manifest, self.partial, self.out)


def publish(manifest: Manifest, partial: Path, out: Path) -> None:
    """Complete a data set: write its manifest, then rename it to `out`."""
    manifest.save(partial)
    (partial / journal.JOURNAL_NAME).unlink(missing_ok=True)
    os.rename(partial, out)
    fsync_path(out.parent)
