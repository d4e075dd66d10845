"""Which checkpoints there are, and which is the newest whole one. Without torch: it starts fast.

damaged      its own bytes are not those that were written: passed over, with a warning
unreadable   permission, I/O error, a mount that is missing: UserError, since it may be whole
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum

CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")
ALWAYS_THERE = {"meta.json", "model.safetensors", ".metadata"}


class Choice(NamedTuple):
    """The newest whole checkpoint, and the steps of newer ones, which are damaged.

    `identity` is the xxh3 of its checksums.json: two checkpoints with one identity are equal.
    """

    step: int
    damaged: tuple[int, ...]
    identity: str


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in `folder`, in order; none if there is no such folder.

    Raises UserError where the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            # A link counts wherever it leads: a checkpoint may be on a disk that is not there now.
            found = [e.name for e in entries if e.is_symlink() or e.is_dir()]
    except FileNotFoundError as error:
        if not folder.is_symlink():
            return []
        raise unreadable(folder, error) from error
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(int(match[1]) for name in found if (match := CHECKPOINT_NAME.fullmatch(name)))


def choose_checkpoint(folder: Path) -> Choice | None:
    """The newest whole checkpoint in `folder`, None if there is no checkpoint.

    Warns of damaged ones. Raises UserError where one cannot be read, or where none is whole.
    """
    faults: dict[int, str] = {}
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        fault = verify_checkpoint(path)
        if fault is None:
            return Choice(step, tuple(faults), read_identity(path))
        if not path.is_dir():  # the run goes on beside us and has removed it
            continue
        faults[step] = fault
        print(f"warning: checkpoint {path} is damaged ({fault})", flush=True)
    if faults:
        each = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
        raise UserError(
            f"no checkpoint in {folder} is whole ({each}): restore one; or, to train anew, choose "
            f"another run= or remove {folder.parent}"
        )
    return None


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, or None.

    Raises UserError where it cannot be read, which says nothing about its bytes.
    """
    file = path / "checksums.json"
    try:
        checksums = parse_checksums(file.read_bytes())
        wrong = []
        for name, expected in checksums.items():
            file = path / name
            if file_checksum(file) != expected:
                wrong.append(name)
    except ValueError as error:
        return f"{file.name}: {error}"
    except FileNotFoundError as error:
        # A link to a file that is not there: perhaps on a disk that is not there now.
        if file.is_symlink() or path.is_symlink():
            raise unreadable(file, error) from error
        return f"{file.name} is missing"
    except OSError as error:
        raise unreadable(file, error) from error
    return f"{', '.join(wrong)} changed" if wrong else None


def read_identity(path: Path) -> str:
    """What tells a checkpoint from all others. Raises UserError where it cannot be read."""
    try:
        for name in (".metadata", "meta.json"):  # what every rank reads when it loads
            file_checksum(path / name)
        return file_checksum(path / "checksums.json")
    except OSError as error:
        raise unreadable(path, error) from error


def parse_checksums(content: bytes) -> dict[str, str]:
    """{name of a file: xxh3} of a checkpoint. Raises ValueError for anything else."""
    try:
        found = json.loads(content)
    except RecursionError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("not a mapping of file names to checksums")
    if outside := [name for name in found if name != os.path.basename(name)]:
        raise ValueError(f"{outside[0]!r} is not the name of a file")
    if missing := ALWAYS_THERE - found.keys():
        raise ValueError(f"does not list {', '.join(sorted(missing))}")
    return found


def unreadable(path: Path, error: OSError) -> UserError:
    """The error that a checkpoint cannot be read, for another reason than its own bytes."""
    what = os.strerror(error.errno or errno.EIO)
    return UserError(
        f"{path} cannot be read: {what}; the checkpoint may be whole: give this user access, or "
        "bring the disk back, and run the same command again"
    )
