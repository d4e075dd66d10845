"""One owner of a run directory, over all machines that see it.

RUN/.lock         flock: the kernel frees it when its owner dies; some network file systems
                  keep it within one node, or have none
RUN/.lock.json    the owner: host, pid, birth of that process, Slurm's job and restart count;
                  touched every HEARTBEAT s, removed at the end
RUN/.lock.wanted  a later start of the owner's Slurm job asks for the directory

acquire ──> flock held by another, or its owner alive?
              │ no   ──> ours: heartbeat; exit at once if another process has taken over
              └ yes  ──> an earlier start of our own job, on a node that Slurm lost but that still
                         works: ask it for a checkpoint, and wait; anybody else: UserError
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cjepa_dist.errors import EXIT_LOCK_LOST, UserError
from cjepa_dist.runtime.clock import timestamp
from cjepa_dist.runtime.environment import read_int
from cjepa_dist.runtime.files import write_text_atomic

HEARTBEAT = 5.0  # s
HEARTBEAT_TIMEOUT = 3 * HEARTBEAT  # s without one, after which an owner on another host may be dead
HANDOVER_TIMEOUT = 180.0  # s that a later start of the same job waits for the earlier one
LOCK_FILES = (".lock", ".lock.json", ".lock.wanted")

Owner = dict[str, Any]


class RunLock:
    """`acquire` before anything is written to `run_dir`, `release` at the end, or a `with` block.

    One process of a run does it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.lock_file, self.owner_file, self.request_file = (run_dir / name for name in LOCK_FILES)
        self.identity: Owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": read_int("SLURM_RESTART_COUNT", 0),
            "since": timestamp(),
        }
        self.handle = -1
        self.released = threading.Event()
        self.thread = threading.Thread(target=self.heartbeat, name="lock", daemon=True)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Own the directory. Raises UserError, naming the owner, where another process does."""
        run_dir = self.lock_file.parent
        run_dir.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + HANDOVER_TIMEOUT
        while (owner := self.find_owner()) is not None:
            if not is_later_start(self.identity, owner) or time.monotonic() > end:
                who = "another process"
                if owner:
                    who = "process {pid} on {host}, since {since}".format(**owner)
                raise UserError(
                    f"{run_dir} is in use: {who}, works in it; wait for it, stop it, or choose "
                    "another directory"
                )
            write_owner(self.request_file, self.identity)
            time.sleep(1)
        try:
            write_owner(self.owner_file, self.identity)
        except OSError:  # the disk is full: then nobody owns the directory
            os.close(self.handle)
            self.handle = -1
            raise
        self.request_file.unlink(missing_ok=True)
        self.thread.start()

    def release(self) -> None:
        self.released.set()
        if self.handle < 0:
            return
        self.thread.join()
        if read_owner(self.owner_file) == self.identity:
            self.owner_file.unlink(missing_ok=True)
        os.close(self.handle)

    def find_owner(self) -> Owner | None:
        """The living owner of the directory, {} if it is unknown; None = nobody, and we hold the
        flock now."""
        handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return read_owner(self.owner_file)
        except OSError:
            pass  # a file system without flock: the owner's own file must do
        owner = read_owner(self.owner_file)
        if owner and is_alive(owner, self.owner_file):
            os.close(handle)
            return owner
        self.handle = handle
        return None

    def heartbeat(self) -> None:
        """In its own thread: show that we live; notice a take-over, or a request to hand over."""
        asked = False
        while not self.released.wait(HEARTBEAT):
            try:
                owner = read_owner(self.owner_file)
                if not owner:  # somebody removed it
                    write_owner(self.owner_file, self.identity)
                elif owner != self.identity:
                    print(
                        f"error: {self.lock_file.parent} was taken over by {owner}; "
                        "this process ends",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(EXIT_LOCK_LOST)
                os.utime(self.owner_file)
            except OSError:
                continue  # the file system does not answer for a moment
            if not asked and is_later_start(read_owner(self.request_file), self.identity):
                asked = True
                os.kill(os.getpid(), signal.SIGTERM)


def living_owner(run_dir: Path) -> Owner:
    """The process that owns `run_dir`, {} if there is none or it is dead."""
    owner_file = run_dir / LOCK_FILES[1]
    owner = read_owner(owner_file)
    return owner if owner and is_alive(owner, owner_file) else {}


def is_alive(owner: Owner, owner_file: Path) -> bool:
    """Whether `owner`, read from `owner_file`, lives; for use where flock has not told.

    Takes up to HEARTBEAT_TIMEOUT for an owner on another host.
    """
    if owner["host"] == socket.gethostname():
        try:
            process = psutil.Process(owner["pid"])
            # Within 2 s: the time of birth is derived from a clock that may be set.
            same = abs(process.create_time() - owner["born"]) < 2
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    before, end = modified_ns(owner_file), time.monotonic() + HEARTBEAT_TIMEOUT
    while time.monotonic() < end:  # the clocks of two hosts may differ: only a change counts
        if modified_ns(owner_file) != before:
            return True
        time.sleep(HEARTBEAT / 5)
    return is_running_in_slurm(owner["job"], owner["restart"])


def is_running_in_slurm(job: str, restart: int) -> bool:
    """Whether this start of a job may run, though it shows no heartbeat: it may be suspended.

    False where there is no Slurm, and where that says otherwise; True where it does not answer.
    """
    if not job or not shutil.which("squeue"):
        return False
    command = ["squeue", "-h", "-r", "-j", job, "-O", "JobID:20,State:20,RestartCnt:10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode:
        return "Invalid job id" not in done.stderr
    # One task of an array has the number of the whole array, and so gets the lines of all.
    lines = [line.split() for line in done.stdout.splitlines()]
    return any(line[:3] == [job, "RUNNING", str(restart)] for line in lines)


def is_later_start(one: Owner, other: Owner) -> bool:
    """Whether both belong to one Slurm job, and `one` to a later start of it."""
    return (
        bool(one.get("job"))
        and one["job"] == other.get("job")
        and one["restart"] > other["restart"]
    )


def modified_ns(path: Path) -> int:
    """Time of the last change in ns, 0 if there is no file.

    The file is opened, since a network file system asks its server only then.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)


def read_owner(path: Path) -> Owner:
    """The owner that a file names, {} if there is none."""
    try:
        found = json.loads(path.read_text())
        return found if {"host", "pid", "born", "job", "restart", "since"} <= found.keys() else {}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def write_owner(path: Path, owner: Owner) -> None:
    write_text_atomic(path, json.dumps(owner), tag=str(os.getpid()))
