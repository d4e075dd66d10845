"""What a stopped write left behind, and whether it may be used.

    OUT.partial/journal.jsonl:  the job
                                {"split", "shape", "entry"} of a whole shard ...      a line each, flushed to the disk

A shard without a line is not whole. Only the same job may go on from what is there; for any other all of it is removed.
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
from cjepa_dist.errors import UserError

NAME = "journal.jsonl"


@dataclasses.dataclass
class CompletedShards:
    """Whole shards of a split, in order, and the shape (T, S, D) of their videos."""

    shape: tuple[int, ...] | None = None
    entries: list[ShardEntry] = dataclasses.field(default_factory=list)


class Journal:
    """The journal of a job in a folder. `done`: {split: what is whole}; everything else that the folder held is removed."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.done: dict[str, CompletedShards] = {}
        lines = read(self.path)
        if lines and lines[0] == json.loads(json.dumps(job)):
            for line in lines[1:]:
                done, entry = (
                    self.done.setdefault(line["split"], CompletedShards(tuple(line["shape"]))),
                    ShardEntry(**line["entry"]),
                )
                path = folder / line["split"] / entry.name
                if not path.is_file() or path.stat().st_size != entry.bytes:
                    raise UserError(
                        f"{path} is not what {self.path} says; remove {folder} and run again"
                    )
                done.entries.append(entry)
        clear(
            folder,
            {
                folder / split / entry.name
                for split, done in self.done.items()
                for entry in done.entries
            }
            | {self.path},
        )
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(
            "".join(json.dumps(line) + "\n" for line in (lines if self.done else [job]))
        )  # without a torn last line
        os.replace(temporary, self.path)

    def note(self, split: str, shape: tuple[int, ...], entry: ShardEntry) -> None:
        """A shard is whole: safe on the disk when this returns."""
        with open(self.path, "a") as file:
            file.write(
                json.dumps({"split": split, "shape": shape, "entry": dataclasses.asdict(entry)})
                + "\n"
            )
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, up to one that was cut short; none if there is no journal."""
    lines = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                lines.append(json.loads(line))
    return lines


def clear(folder: Path, keep: set[Path]) -> None:
    """Remove all files under `folder` but `keep`, and the folders that are then empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            if path not in keep:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def acquire(folder: Path) -> int:
    """Lock a folder until the descriptor is closed or the process dies. UserError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process is writing {folder}; wait for it or choose another folder"
        ) from None
    except OSError:
        pass  # a network file system without locks: nothing guards against two writers there
    return descriptor
