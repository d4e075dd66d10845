"""A disk that is full or refuses to be written ends a run with one line, exit code 2, all ranks.

Small files (metrics, images, records of the run) are handled here; checkpoints by
checkpoint/writer.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.collectives import first_error, is_main
from cjepa_dist.runtime.files import free_bytes

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as_user_error(run_dir: Path) -> Iterator[None]:
    """Turns a full disk, met by anything that writes to `run_dir`, into a UserError.

    So is any other error of the system about a file in `run_dir`: no permission, read-only, I/O.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise UserError(
                f"no space left in {run_dir} for metrics, images and records of the run "
                f"({os.strerror(error.errno)}): they need some thousand bytes, "
                f"{free_bytes(run_dir)} are free; free some, for the next checkpoint too, and run "
                "the same command again"
            ) from error
        if error.errno is None or not is_about(error, run_dir):
            raise
        raise UserError(
            f"{error.filename}: {os.strerror(error.errno)}: mend that, or choose another run "
            "directory, and run the same command again"
        ) from error


def is_about(error: OSError, folder: Path) -> bool:
    """Whether an error is about something in `folder`, or about a folder that leads to it."""
    if not isinstance(error.filename, (str, os.PathLike)):
        return False
    path, folder = Path(os.path.abspath(error.filename)), Path(os.path.abspath(folder))
    return path == folder or folder in path.parents or path in folder.parents


def find_os_error(error: BaseException) -> OSError | None:
    """The error of the system that `error` is, or that torch's checkpoints met on some rank."""
    failures = getattr(error, "failures", {})  # of CheckpointException: {rank: (error, stack)}
    found = [error, *(fault[0] for fault in failures.values())]
    return next((fault for fault in found if isinstance(fault, OSError)), None)


def on_main_process(
    run_dir: Path, action: Callable[[], Any], group: dist.ProcessGroup | None = None
) -> None:
    """Rank zero calls `action`, which writes to `run_dir`; all ranks call this function.

    All ranks raise its UserError, and one for a disk that is full or cannot be written. If rank
    zero raised it and left without telling, the others would fail in a broken collective.
    """
    message = None
    if is_main():
        try:
            with disk_full_as_user_error(run_dir):
                action()
        except UserError as error:
            message = str(error)
    if message := first_error(message, group):
        raise UserError(message)
