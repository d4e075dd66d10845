"""The folder that a data set is to become: checked before hours of work, not after them."""

from __future__ import annotations

import os
from pathlib import Path

from cjepa_dist.errors import UserError


class PublishError(UserError):
    """A data set is complete but cannot get its name."""


def check_target(out: Path) -> Path:
    """The folder that a data set is to become, with links followed.

    Raises UserError if it holds something, or is a mount point: no rename can replace that.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds something; choose another folder, or remove it first")
    out = out.resolve()
    if is_mount_point(out):
        raise UserError(
            f"{out} is a mount point, which a finished data set cannot replace;"
            f" choose a folder in it, such as {out}/data"
        )
    return out


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a resolved path, also a folder of the same file system."""
    if os.path.ismount(path):
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    escaped = os.fsencode(path).replace(b"\\", b"\\134").replace(b" ", b"\\040")
    return escaped in (line.split()[4] for line in mounts)
