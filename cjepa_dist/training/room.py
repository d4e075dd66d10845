"""A full disk ends a run with one line and exit code 2, on all ranks alike. What a checkpoint says of it: checkpoint.py."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist import runtime
from cjepa_dist.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_is_a_user_error(run: Path) -> Iterator[None]:
    """Around whatever writes to `run`: no room is a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"no room in {run} for metrics, pictures or what is noted of the run ({os.strerror(error.errno)}): they need some thousand "
            f"bytes, {free(run)} are free; make room, for the next checkpoint too, and run the same command again"
        ) from error


def alone(run: Path, part: Callable[[], Any], *, first: bool, group: dist.ProcessGroup | None = None) -> None:
    """The `first` rank does `part`, which writes to `run`; all ranks call it.

    Where there is no room, all raise the UserError: had the first one left alone, the others would end in a broken collective.
    """
    fault = None
    if first:
        try:
            with full_disk_is_a_user_error(run):
                part()
        except UserError as error:
            fault = str(error)
    if fault := runtime.first_error(fault, group):
        raise UserError(fault)


def free(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    os.replace(temporary, path)
