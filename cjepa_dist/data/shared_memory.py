"""Arrays in shared memory: one copy a node of what all of its processes read.

    rank 0:       lock ──> fill FILE.partial in /dev/shm ──> FILE
    rank 1, 2...: wait for the lock ──> map FILE, read-only

Every process that maps a file holds a shared lock on it. The last one to release it removes file
and lock, and so does the next process that starts after others were killed.
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

SHARED_MEMORY = Path("/dev/shm")


def shared_array(
    key: str, shape: tuple[int, ...], dtype: Any, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array that `fill` fills once for all processes of this node; read-only where shared.

    Processes that pass the same `key` get the same array. One process on its own gets an ordinary
    array, and so do all, with a message, where shared memory is too small.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1 or not size:
        return private_array(shape, dtype, fill)
    path = SHARED_MEMORY / f"cjepa_dist_{os.getuid()}_{xxhash.xxh3_128(key.encode()).hexdigest()}"
    lock, exclusive = join_file_lock(path)
    try:
        if exclusive and not path.exists():
            remove_stale_files()
            write_file(
                path, size, lambda partial: fill(np.memmap(partial, dtype, "r+", shape=shape))
            )
        array = np.memmap(path, dtype, "r", shape=shape)
    except OSError as error:
        release(path, lock)
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"{SHARED_MEMORY} has no room for one copy a node, {1e-9 * size:.3g} GB: "
            "each process has its own",
            flush=True,
        )
        return private_array(shape, dtype, fill)
    except BaseException:
        release(path, lock)
        raise
    fcntl.flock(lock, fcntl.LOCK_SH)
    atexit.register(release, path, lock)
    return array.view(np.ndarray)


def private_array(
    shape: tuple[int, ...], dtype: Any, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    array = np.empty(shape, dtype)
    fill(array)
    return array


def write_file(path: Path, size: int, write: Callable[[Path], None]) -> None:
    """Write a file of `size` bytes completely or not at all.

    OSError (ENOSPC) before anything is written if there is too little memory.
    """
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # else a write without memory is a SIGBUS
    write(partial)
    os.rename(partial, path)


def join_file_lock(path: Path) -> tuple[int, bool]:
    """Lock a file; returns (lock, whether it is exclusive).

    Exclusive if no other process has it. Else shared, once those who fill the file have done so.
    """
    while True:
        try:
            return open_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB), True
        except BlockingIOError:
            lock = open_lock(path, fcntl.LOCK_SH)
        if path.exists():
            return lock, False
        os.close(lock)  # they failed


def open_lock(path: Path, mode: int) -> int:
    """The lock of a file, held until it is closed."""
    place = path.with_suffix(".lock")
    while True:
        lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, mode)
            # Otherwise its last holder removed it in the meantime.
            if place.exists() and place.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def release(path: Path, lock: int) -> None:
    """Release the lock of a file; the last process removes the file."""
    os.close(lock)
    remove_unused(path)


def remove_unused(path: Path) -> None:
    try:
        lock = open_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for suffix in ("", ".partial", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    os.close(lock)


def remove_stale_files() -> None:
    """Remove what killed processes left."""
    for lock in SHARED_MEMORY.glob(f"cjepa_dist_{os.getuid()}_*.lock"):
        remove_unused(lock.with_suffix(""))
