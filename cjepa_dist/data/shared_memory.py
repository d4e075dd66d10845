"""Arrays in shared memory: one copy a node of what all of its processes read.

    rank 0:       lock ──> fill FILE.partial in /dev/shm ──> FILE
    rank 1, 2...: wait for the lock ──> map FILE, read-only

Anybody may write in /dev/shm. So files are made exclusively, private, and one that is there is used
only if it is ours: a plain file of this user, that no other can change, of the right size.

Every process that maps a file holds a shared lock on it. The last one to release it removes file
and lock, and so does the next process that starts after others were killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from cjepa_dist.runtime.environment import read_int

SHARED_MEMORY = Path("/dev/shm")


def shared_array(
    key: str, shape: tuple[int, ...], dtype: Any, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array that `fill` fills once for all processes of this node; read-only where shared.

    Processes that pass the same `key` get the same array. One process on its own gets an ordinary
    array, and so do all, with a message, where shared memory is too small.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if read_int("LOCAL_WORLD_SIZE", 1, least=1) == 1 or not size:
        return private_array(shape, dtype, fill)
    path = SHARED_MEMORY / f"cjepa_dist_{os.getuid()}_{xxhash.xxh3_128(key.encode()).hexdigest()}"
    try:
        lock, exclusive = join_file_lock(path)
    except NotOurs as error:
        print(f"{error}: each process has its own copy of the data", flush=True)
        return private_array(shape, dtype, fill)
    try:
        if exclusive and not path.exists():
            remove_stale_files()
            write_file(path, size, lambda file: fill(np.memmap(file, dtype, "r+", shape=shape)))
        with open_ours(path, os.O_RDONLY, size) as file:
            array = np.memmap(file, dtype, "r", shape=shape)
    except NotOurs as error:
        release(path, lock)
        print(f"{error}: each process has its own copy of the data", flush=True)
        return private_array(shape, dtype, fill)
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


class NotOurs(Exception):
    """A file in shared memory that this user did not make, or that others may change."""


def open_ours(path: Path, flags: int, size: int | None = None) -> BinaryIO:
    """Open a file if it is ours, and of `size` bytes if that is given; else NotOurs.

    With O_CREAT an absent file is made, for this user alone. No link is followed.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (FileExistsError, PermissionError) as error:
        raise NotOurs(f"{path} is not ours ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotOurs(f"{path} is a link") from None
        raise
    about = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        problem = "belongs to somebody else"
    elif about.st_mode & 0o077:
        problem = "can be used by others"
    elif size is not None and about.st_size != size:
        problem = f"has {about.st_size} bytes, not {size}"
    if problem:
        os.close(descriptor)
        raise NotOurs(f"{path} {problem}")
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")


def write_file(path: Path, size: int, write: Callable[[BinaryIO], None]) -> None:
    """Write a file of `size` bytes completely or not at all.

    OSError (ENOSPC) before anything is written if there is too little memory.
    """
    partial = path.with_suffix(".partial")
    with contextlib.suppress(FileNotFoundError, PermissionError):  # of a process that was killed
        partial.unlink()
    with open_ours(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # else a write without memory is a SIGBUS
        write(file)
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
        with open_ours(place, os.O_RDWR | os.O_CREAT) as file:
            lock = os.dup(file.fileno())
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
    except (BlockingIOError, NotOurs):
        return
    for suffix in ("", ".partial", ".lock"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # somebody else's
            path.with_suffix(suffix).unlink()
    os.close(lock)


def remove_stale_files() -> None:
    """Remove what killed processes left."""
    for lock in SHARED_MEMORY.glob(f"cjepa_dist_{os.getuid()}_*.lock"):
        remove_unused(lock.with_suffix(""))
