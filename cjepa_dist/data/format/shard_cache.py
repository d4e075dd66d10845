"""Remote shards on this machine's disk: each is fetched once, for all processes and all runs.

    URL ──lock──> FOLDER/shards/<xxh3>-<size>.partial ──xxh3 = the manifest's──> <xxh3>-<size>.tar
    later: <xxh3>-<size>.tar ──xxh3, once a process──> descriptor

A file is named by what it holds: a copy of the data at another URL is the same file, and data that
were made anew are other files. One that is damaged is fetched again. Those that were used longest
ago are removed to make room; none that is open.

The cache saves time and nothing else. Where it cannot be used (a full disk, a folder that others
may change, no locks) a shard is read into memory, with a line that says so.

    CJEPA_CACHE     folder; default $XDG_CACHE_HOME/cjepa_dist, ~/.cache/cjepa_dist, or, where that
                    cannot be written to, cjepa_dist_<user id> in the folder for temporary files
    CJEPA_CACHE_GB  how much it holds, 20 by default; 0 = no cache
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

from cjepa_dist.data.format.checked_files import checksum_once, remember_checksum
from cjepa_dist.data.format.storage import DEFAULT_RETRY, RetryPolicy, download, download_to_memory
from cjepa_dist.data.shared_memory import NotOurs, open_lock, open_ours
from cjepa_dist.errors import UserError, one_line, without_secrets

DEFAULT_GB = 20.0
CACHED_NAME = re.compile(r"[0-9a-f]{16}-\d+\.(tar|partial)", re.ASCII)  # no other is removed
FREE_SHARE = 0.05  # of the disk, which is left free for others
said: set[str] = set()


def open_remote_shard(url: str, size: int, xxh3: str, retry: RetryPolicy = DEFAULT_RETRY) -> int:
    """A descriptor of a remote shard of `size` bytes whose checksum is `xxh3`.

    Raises UserError, naming the shard, where it cannot be read or is damaged; and for a
    CJEPA_CACHE_GB that is no number.
    """
    limit = read_limit()
    if not limit:
        return download_to_memory(url, size, xxh3, retry)
    try:
        folder = cache_folder()
        path = folder / f"{xxh3}-{size}.tar"
        if (found := open_cached(path, size, xxh3)) is not None:
            return found
        lock = open_lock(path, fcntl.LOCK_EX)  # released by the kernel if this process dies
        try:
            # Another process may have fetched it while this one waited.
            if (found := open_cached(path, size, xxh3)) is not None:
                return found
            with contextlib.suppress(FileNotFoundError):  # of a process that was killed
                path.with_suffix(".partial").unlink()
            make_room(folder, size, limit)
            return fetch(url, path, size, xxh3, retry)
        finally:
            with contextlib.suppress(OSError):
                path.with_suffix(".lock").unlink()
            os.close(lock)
    except (NotOurs, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        say_once(f"no cache of remote shards ({reason}): they are read into memory")
        return download_to_memory(url, size, xxh3, retry)


def read_limit() -> int:
    """Bytes that the cache may have. Raises UserError."""
    text = os.environ.get("CJEPA_CACHE_GB", "").strip()
    try:
        number = float(text or DEFAULT_GB)
    except ValueError:
        number = -1
    if not 0 <= number <= 1e9:
        raise UserError(
            f"environment variable CJEPA_CACHE_GB={text:.40}: must be a number of GB from 0 on;"
            " 0 = no cache"
        )
    return int(number * 1e9)


def cache_folder() -> Path:
    """The folder of the cached shards, for this user alone. OSError or NotOurs if there is none."""
    if given := os.environ.get("CJEPA_CACHE"):
        return private_folder(Path(os.path.expanduser(given)).absolute() / "shards")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():  # as the rules for XDG_CACHE_HOME say
        base = Path("~/.cache").expanduser()
    try:
        return private_folder(base / "cjepa_dist" / "shards")
    except (OSError, RuntimeError):  # RuntimeError: a user without a home folder
        user = Path(tempfile.gettempdir()) / f"cjepa_dist_{os.getuid()}"
        return private_folder(private_folder(user) / "shards")


def private_folder(path: Path) -> Path:
    """Make a folder for this user alone. OSError; NotOurs where others may change what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise NotOurs(f"{path} is no folder")
    if about.st_uid != os.getuid():
        raise NotOurs(f"{path} belongs to somebody else")
    if about.st_mode & 0o077:
        raise NotOurs(f"{path} can be used by others: chmod 700 {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(13, f"{path} cannot be written to")
    return path


def open_cached(path: Path, size: int, xxh3: str) -> int | None:
    """A descriptor of a shard in the cache; None if it is not there, or was damaged.

    It holds a shared lock as long as it is open, so that `make_room` leaves the file alone.
    """
    try:
        with open_ours(path, os.O_RDONLY) as file:
            descriptor = os.dup(file.fileno())
    except FileNotFoundError:
        return None
    try:
        about = os.fstat(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if about.st_size == size and checksum_once(descriptor) == xxh3:
            # The time of use. That of change stays: by it a process knows what it has checked.
            with contextlib.suppress(OSError):
                os.utime(descriptor, ns=(time.time_ns(), about.st_mtime_ns))
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    print(f"{path} is damaged, and fetched again", file=sys.stderr, flush=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return None


def fetch(url: str, path: Path, size: int, xxh3: str, retry: RetryPolicy) -> int:
    """Download a shard into the cache; the lock of `path` is held."""
    partial = path.with_suffix(".partial")
    with open_ours(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        try:
            download(url, size, xxh3, retry, file.fileno())
            os.rename(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            raise
    with open_ours(path, os.O_RDONLY, size) as file:
        descriptor = os.dup(file.fileno())
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    remember_checksum(descriptor, xxh3)
    return descriptor


def make_room(folder: Path, size: int, limit: int) -> None:
    """Remove the files that were used longest ago, until `size` bytes more fit.

    OSError if they do not, since the others are in use or the disk is full.
    """
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if CACHED_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                about = entry.stat(follow_symlinks=False)
                files.append((about.st_atime_ns, about.st_size, Path(entry.path)))
    disk = shutil.disk_usage(folder)
    excess = sum(length for _, length, _ in files) + size - limit
    missing = size + int(FREE_SHARE * disk.total) - disk.free
    to_free = max(excess, missing)
    for _, length, path in sorted(files):
        if to_free <= 0:
            return
        if remove_unused(path):
            to_free -= length
    if to_free > 0:
        what = "CJEPA_CACHE_GB is too small" if excess >= missing else "its disk is full"
        raise OSError(f"{folder}: {what}")


def remove_unused(path: Path) -> bool:
    """Remove a cached file, unless some process has it open or writes it."""
    try:
        lock = open_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, NotOurs):
        return False
    try:
        with open_ours(path, os.O_RDWR) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        return True
    except FileNotFoundError:
        return True
    except (BlockingIOError, NotOurs):
        return False
    finally:
        with contextlib.suppress(OSError):
            path.with_suffix(".lock").unlink()
        os.close(lock)


def say_once(text: str) -> None:
    """Print a line on stderr, once a process."""
    if text not in said:
        said.add(text)
        print(one_line(without_secrets(text)), file=sys.stderr, flush=True)
