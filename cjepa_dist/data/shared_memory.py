"""One copy a node of what all of its processes read.

    rank 0: lock ─> fill FILE.partial in /dev/shm ─> FILE     rank 1, 2, ...: wait for the lock ─> map FILE, read-only

Who maps a file holds its lock, shared; the last to leave removes both, and so does the next to come after processes that were killed.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

MEMORY = Path("/dev/shm")


def node_array(
    what: str, shape: tuple[int, ...], dtype: Any, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array that `fill` has filled, once for all processes that torchrun or accelerate started on this node; read-only where shared.

    `what` tells it from any other: all processes that say the same get the same. Alone in this process where there is no other, or, with
    a line, where shared memory has no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1 or not size:
        return filled(np.empty(shape, dtype), fill)
    path = MEMORY / f"cjepa_dist_{os.getuid()}_{xxhash.xxh3_128(what.encode()).hexdigest()}"
    lock, alone = joined(path)
    try:
        if alone and not path.exists():
            sweep()
            make(path, size, lambda partial: fill(np.memmap(partial, dtype, "r+", shape=shape)))
        array = np.memmap(path, dtype, "r", shape=shape)
    except OSError as error:
        leave(path, lock)
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"{MEMORY} has no room for one copy a node, {1e-9 * size:.3g} GB: each process has its own",
            flush=True,
        )
        return filled(np.empty(shape, dtype), fill)
    except BaseException:
        leave(path, lock)
        raise
    fcntl.flock(lock, fcntl.LOCK_SH)
    atexit.register(leave, path, lock)
    return array.view(np.ndarray)


def make(path: Path, size: int, write: Callable[[Path], None]) -> None:
    """A file of `size` bytes that is there whole or not at all. OSError (ENOSPC) before anything is written if there is no room."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # else a write that finds no room is a SIGBUS
    write(partial)
    os.rename(partial, path)


def filled(array: np.ndarray, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    fill(array)
    return array


def joined(path: Path) -> tuple[int, bool]:
    """A file's lock: alone, if nobody has it; else, when those who fill the file have, together with all others."""
    while True:
        try:
            return locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB), True
        except BlockingIOError:
            lock = locked(path, fcntl.LOCK_SH)
        if path.exists():
            return lock, False
        os.close(lock)  # they failed


def locked(path: Path, how: int) -> int:
    """The lock of a file, held until it is closed."""
    place = path.with_suffix(".lock")
    while True:
        lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, how)
            if (
                place.exists() and place.stat().st_ino == os.fstat(lock).st_ino
            ):  # else the last holder removed it meanwhile
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def leave(path: Path, lock: int) -> None:
    """Let go of a file; the last one removes it."""
    os.close(lock)
    remove_unused(path)


def remove_unused(path: Path) -> None:
    try:
        lock = locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for suffix in ("", ".partial", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    os.close(lock)


def sweep() -> None:
    """Remove what killed processes left."""
    for lock in MEMORY.glob(f"cjepa_dist_{os.getuid()}_*.lock"):
        remove_unused(lock.with_suffix(""))
