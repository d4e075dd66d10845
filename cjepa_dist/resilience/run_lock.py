"""One owner of a run folder, over all machines that see it.

RUN/.lock         flock: freed by the kernel when its owner dies; some network file systems keep it to the node, or have none
RUN/.lock.json    the owner: host, pid, birth of that process, Slurm's job and restart; touched every BEAT s; removed at the end
RUN/.lock.wanted  a later start of the owner's Slurm job waits for it

take ──> flock held, or owner alive? ──no──> ours: beat, and leave at once should another have taken over
                     │ yes
                     └──> an earlier start of our own job (its node was lost to Slurm, not to work): ask it for a checkpoint, wait
                          anybody else: refused
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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

HEARTBEAT = 5.0  # s
SILENCE = (
    3 * HEARTBEAT
)  # an owner on another host that did not touch its file for so long may be dead
HANDOVER_TIMEOUT = 180.0  # s that a later start of the same job waits for the earlier
LOCK_FILES = (".lock", ".lock.json", ".lock.wanted")

Owner = dict[str, Any]


class RunLock:
    """`take` before anything is written to `run`, `release` at the end; both from one process of the run."""

    def __init__(self, run: Path) -> None:
        self.path, self.side, self.wanted = (run / name for name in LOCK_FILES)
        self.me: Owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": psutil.Process().create_time(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "since": timestamp(),
        }
        self.handle = -1
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.beat, name="lock", daemon=True)

    def take(self) -> str | None:
        """Own the folder; or, in a line, who does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + HANDOVER_TIMEOUT
        while (owner := self.owner()) is not None:
            if not later(self.me, owner) or time.monotonic() > end:
                who = (
                    "process {pid} on {host}, since {since}".format(**owner)
                    if owner
                    else "another process"
                )
                return f"{self.path.parent} is in use: {who}, works in it; wait for it, stop it, or choose another folder"
            write(self.wanted, self.me)
            time.sleep(1)
        try:
            write(self.side, self.me)
        except OSError:  # no room: nobody's, then
            os.close(self.handle)
            self.handle = -1
            raise
        self.wanted.unlink(missing_ok=True)
        self.thread.start()
        return None

    def release(self) -> None:
        self.over.set()
        if self.handle < 0:
            return
        self.thread.join()
        if read(self.side) == self.me:
            self.side.unlink(missing_ok=True)
        os.close(self.handle)

    def owner(self) -> Owner | None:
        """Who lives and owns the folder ({} = the lock is held, by an unknown one); None = nobody, and the flock is ours."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return read(self.side)
        except OSError:
            pass  # a file system without flock: what the owner says of itself must do
        owner = read(self.side)
        if owner and alive(owner, self.side):
            os.close(handle)
            return owner
        self.handle = handle
        return None

    def beat(self) -> None:
        """In a thread of its own: say that we live; see whether we still own the folder, and whether we are asked to leave it."""
        asked = False
        while not self.over.wait(HEARTBEAT):
            try:
                owner = read(self.side)
                if not owner:  # somebody removed it
                    write(self.side, self.me)
                elif owner != self.me:
                    print(
                        f"error: {self.path.parent} was taken over by {owner}; this process ends",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(os.EX_SOFTWARE)
                os.utime(self.side)
            except OSError:
                continue  # the file system does not answer for a moment
            if not asked and later(read(self.wanted), self.me):
                asked = True
                os.kill(os.getpid(), signal.SIGTERM)


def alive(owner: Owner, side: Path) -> bool:
    """Whether the owner that `side` names lives, where flock did not say so. Takes SILENCE seconds for one on another host."""
    if owner["host"] == socket.gethostname():
        try:
            process = psutil.Process(owner["pid"])
            same = (
                abs(process.create_time() - owner["born"]) < 2
            )  # s: it is derived from a clock that is set at times
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    before, end = touched(side), time.monotonic() + SILENCE
    while time.monotonic() < end:  # the two hosts' clocks may differ: only a change counts
        if touched(side) != before:
            return True
        time.sleep(HEARTBEAT / 5)
    return running(owner["job"], owner["restart"])


def running(job: str, restart: int) -> bool:
    """Whether Slurm says that this start of a job runs (what only stands still may go on); False where there is no Slurm."""
    if not job or not shutil.which("squeue"):
        return False
    done = subprocess.run(
        ["squeue", "-h", "-j", job, "-O", "State:20,RestartCnt:10"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()[:2] == ["RUNNING", str(restart)]


def later(one: Owner, other: Owner) -> bool:
    """Whether `one` is a later start of the Slurm job that `other` is of."""
    return (
        bool(one.get("job"))
        and one["job"] == other.get("job")
        and one["restart"] > other["restart"]
    )


def touched(path: Path) -> int:
    """Time of the last change, in ns; opened, since a network file system answers an open from its server. 0 = not there."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)


def read(path: Path) -> Owner:
    """What a file says of an owner, {} if there is none."""
    try:
        found = json.loads(path.read_text())
        return found if {"host", "pid", "born", "job", "restart", "since"} <= found.keys() else {}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def write(path: Path, content: Owner) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
