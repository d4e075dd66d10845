"""A full disk ends a run with one line and exit code 2, on all ranks alike. What a checkpoint says of it: checkpoint.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.collectives import first_error
from cjepa_dist.runtime.files import free_bytes

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_is_a_user_error(run: Path) -> Iterator[None]:
    """Around whatever writes to `run`: no room is a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise UserError(
            f"no room in {run} for metrics, pictures or what is noted of the run ({os.strerror(error.errno)}): they need some thousand "
            f"bytes, {free_bytes(run)} are free; make room, for the next checkpoint too, and run the same command again"
        ) from error


def on_main_process(
    run: Path, part: Callable[[], Any], *, first: bool, group: dist.ProcessGroup | None = None
) -> None:
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
    if fault := first_error(fault, group):
        raise UserError(fault)
