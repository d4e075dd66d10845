"""Writes data sets completely or not at all: in OUT.partial, which one rename makes OUT.

    Sample ──SplitWriter──> OUT.partial/<split>/%06d.tar ──┬──> journal.jsonl: complete shards,
                                                           │    from which a stopped run resumes
                                                           └──> manifest.json ──rename──> OUT

The same samples give the same bytes, however often the writing was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cjepa_dist.data.format import journal
from cjepa_dist.data.format.dtypes import storage_dtype
from cjepa_dist.data.format.journal import Journal, claim_folder
from cjepa_dist.data.format.manifest import (
    MANIFEST_NAME,
    SKIPPED_NAME,
    Manifest,
    partial_folder,
)
from cjepa_dist.data.format.manifest_checks import ManifestError, check_split_name
from cjepa_dist.data.format.split_writer import SplitWriter
from cjepa_dist.data.format.statistics import set_statistics
from cjepa_dist.data.format.target import PublishError, check_target
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path


class DatasetWriter:
    """A context manager that writes a data set.

        with DatasetWriter(out, encoder=..., source=...) as writer:
            writer.split("train").add(sample)

    `out` appears, complete, when the block ends without an error; otherwise nothing is left.
    `source` (JSON) says how the slots were made; `empty_slot` (D,) is the vector of a slot without
    an object, if known. UserError if `out` holds anything, if another process is writing it, or if
    splits differ in shape. What a killed run left in `out.partial` is removed. A link is followed.

    With `resume` (JSON: what the samples are made from) the complete shards of a stopped run with
    the same settings and the same `resume` are kept. What is in `writer.split(name).written_keys`
    is written already: the caller skips it and adds the rest in the same order. Whatever ends the
    run leaves those shards behind.

    `skipped`: what was left out, each as JSON; written to `out/skipped.jsonl` if there is any.

    With `redo` a data set in `out` is replaced when the new one is whole. UserError where `out`
    holds anything else beside it.
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
        redo: bool = False,
    ) -> None:
        storage_dtype(dtype)
        self.out = Path(out).absolute()
        self.encoder, self.source = encoder, source
        self.dtype, self.shard_bytes = dtype, int(shard_mb) << 20
        self.empty_slot = None if empty_slot is None else [float(x) for x in empty_slot]
        self.resume, self.redo = resume, redo
        self.skipped: list[dict[str, Any]] = []
        self.writers: dict[str, SplitWriter] = {}
        self.journal: Journal | None = None
        self.lock = -1

    def __enter__(self) -> DatasetWriter:
        try:
            if self.redo and (self.out / MANIFEST_NAME).is_file():
                check_only_dataset(self.out)
            else:
                self.out = check_target(self.out)
            self.partial = partial_folder(self.out)
            self.lock = claim_folder(self.partial)
            if self.resume is None:
                kept = {self.partial / journal.JOURNAL_NAME}
                journal.remove_files_except(self.partial, kept)
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
            if self.resume is not None and isinstance(error, Exception):
                with contextlib.suppress(Exception):  # what the threads still hold may fill a shard
                    writer.drain()
            writer.abort()
        if isinstance(error, PublishError):
            return
        stopped = isinstance(error, OSError) or not isinstance(error, Exception)
        kept = any(writer.entries for writer in self.writers.values())
        if self.resume is None or not (stopped or kept):
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
        if self.skipped:
            text = "".join(json.dumps(entry) + "\n" for entry in self.skipped)
            (self.partial / SKIPPED_NAME).write_text(text)
        publish(manifest, self.partial, self.out, redo=self.redo)


def publish(manifest: Manifest, partial: Path, out: Path, *, redo: bool = False) -> None:
    """Complete a data set: write its manifest, then rename it to `out`, which `redo` replaces.

    The journal goes last: until then it marks the folder as ours.
    """
    manifest.save(partial)
    try:
        rename_dataset(partial, out, redo)
    except OSError as error:
        raise PublishError(
            f"{partial} is complete but cannot become {out}: {error.strerror}; rename it yourself"
        ) from error
    (out / journal.JOURNAL_NAME).unlink(missing_ok=True)


def rename_dataset(partial: Path, out: Path, redo: bool) -> None:
    if not (redo and (out / MANIFEST_NAME).is_file()):
        os.rename(partial, out)
        fsync_path(out.parent)
        return
    # It is replaced: aside first, in a folder of its own, and removed when the new one is there.
    aside = Path(tempfile.mkdtemp(prefix=f"{out.name}.replaced_", dir=out.parent))
    os.rename(out, aside / out.name)
    try:
        os.rename(partial, out)
    except OSError:
        os.rename(aside / out.name, out)
        aside.rmdir()
        raise
    fsync_path(out.parent)
    shutil.rmtree(aside)


def check_only_dataset(folder: Path) -> None:
    """Raises UserError where a folder holds more than its data set, or cannot be moved aside."""
    if folder.is_symlink() or folder.is_mount():
        raise UserError(
            f"redo=true replaces {folder}, which is a link or a mount point: name another out="
        )
    splits = Manifest.load(folder).splits
    shards = {f"{split}/{entry.name}" for split in splits for entry in splits[split]}
    known = shards | {MANIFEST_NAME, SKIPPED_NAME, journal.JOURNAL_NAME, *splits}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.relative_to(folder).as_posix() not in known:
            raise UserError(
                f"redo=true replaces {folder}, which holds {path} beside the data set:"
                " move that away first, or choose another out="
            )
