"""A full disk ends a run with one line and exit code 2, on all ranks.

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
    """Turns a full disk, met by anything that writes to `run_dir`, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise UserError(
            f"no space left in {run_dir} for metrics, images and records of the run "
            f"({os.strerror(error.errno)}): they need some thousand bytes, "
            f"{free_bytes(run_dir)} are free; free some, for the next checkpoint too, and run "
            "the same command again"
        ) from error


def on_main_process(
    run_dir: Path, action: Callable[[], Any], group: dist.ProcessGroup | None = None
) -> None:
    """Rank zero calls `action`, which writes to `run_dir`; all ranks call this function.

    All ranks raise its UserError, and one for a full disk. If rank zero raised it and left
    without telling, the others would fail in a broken collective.
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
