"""The journal of a write: which shards are complete, so that a stopped write can resume.

    OUT.partial/journal.jsonl:  the job
                                {"split", "shape", "entry"} of each complete shard, flushed to disk

A shard without a line is not complete. Only the same job resumes; any other removes what is there.
The journal also marks a folder as ours: one that has none, and holds something, is never emptied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from cjepa_dist.data.format.manifest import ShardEntry
from cjepa_dist.data.format.manifest_checks import (
    MOST_SIZE,
    check_int,
    check_shard,
    check_split_name,
)
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import write_text_atomic

JOURNAL_NAME = "journal.jsonl"


@dataclasses.dataclass
class CompletedShards:
    """Complete shards of a split, in order, and the shape (T, S, D) of their videos."""

    shape: tuple[int, ...] | None = None
    entries: list[ShardEntry] = dataclasses.field(default_factory=list)


class Journal:
    """The journal of a job in a folder.

    `completed`: {split: its complete shards}. Everything else in the folder is removed.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_NAME
        self.completed: dict[str, CompletedShards] = {}
        lines = read_lines(self.path)
        if lines and lines[0] == json.loads(json.dumps(job)):
            for line in lines[1:]:
                split, shape, entry = self.parse(line)
                shards = self.completed.setdefault(split, CompletedShards(shape))
                path = folder / split / entry.name
                if not path.is_file() or path.stat().st_size != entry.bytes:
                    raise UserError(
                        f"{path} is not what {self.path} says; remove {folder} and run again"
                    )
                shards.entries.append(entry)
        kept = {
            folder / split / entry.name
            for split, shards in self.completed.items()
            for entry in shards.entries
        }
        remove_files_except(folder, kept | {self.path})
        # Without an incomplete last line.
        lines = lines if self.completed else [job]
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def parse(self, line: Any) -> tuple[str, tuple[int, ...], ShardEntry]:
        """(split, shape, shard) of a line. Raises UserError for one that we do not write.

        What it names is opened and kept, so the same holds for it as for a manifest.
        """
        try:
            split, shape, entry = line["split"], line["shape"], line["entry"]
            check_split_name(split)
            if len(shape) != 3:
                raise ValueError(f"a shape of {len(shape)} numbers")
            for size in shape:
                check_int(size, 1, MOST_SIZE, "shape")
            check_shard(entry, f"split {split}", 0, shape[2])
            return split, tuple(shape), ShardEntry(**entry)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.path} is damaged ({reason:.300}); remove {self.path.parent} and run again"
            ) from error

    def add(self, split: str, shape: tuple[int, ...], entry: ShardEntry) -> None:
        """Record that a shard is complete; safe on the disk when this returns."""
        with open(self.path, "a") as file:
            file.write(
                json.dumps({"split": split, "shape": shape, "entry": dataclasses.asdict(entry)})
                + "\n"
            )
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, up to one that was cut off; [] if there is no journal."""
    lines = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                lines.append(json.loads(line))
    return lines


def claim_folder(folder: Path) -> int:
    """Make a folder to write a data set in, lock it, and return the descriptor of the lock.

    Raises UserError if another process is writing it, and if it holds anything but an unfinished
    write: then it is not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    journal = folder / JOURNAL_NAME
    if not journal.is_file():
        names = sorted(path.name for path in folder.iterdir())
        if names and names != [f"{JOURNAL_NAME}.partial"]:
            os.close(lock)
            raise UserError(
                f"{folder} holds {names[0]!r} and is no unfinished write; it is needed for writing"
                " and would be emptied: rename it, or choose another out="
            )
        write_text_atomic(journal, "")
    return lock


def remove_files_except(folder: Path, keep: set[Path]) -> None:
    """Remove all files under `folder` but `keep`, and the folders that are then empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            if path not in keep:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def lock_folder(folder: Path) -> int:
    """Lock a folder until the descriptor is closed or the process dies.

    UserError if another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process is writing {folder}; wait for it or choose another folder"
        ) from None
    except OSError:
        pass  # a network file system without locks: two writers are not detected there
    return descriptor
