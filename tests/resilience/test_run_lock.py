"""Who owns a run directory: by flock, process, heartbeat and Slurm; two starts of one job."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cjepa_dist.errors import EXIT_LOCK_LOST, UserError
from cjepa_dist.resilience import run_lock
from cjepa_dist.resilience.run_lock import RunLock
from cjepa_dist.training.run_dir import lock_run_dir
from tests.fork_server import PROJECT

LIMIT_S = 300.0  # for what comes at once: the machine may be busy
OWNER = """
import signal, sys
from pathlib import Path
from cjepa_dist.resilience import run_lock
run_lock.HEARTBEAT = 0.1
if sys.argv[2] == "no flock":
    run_lock.fcntl.flock = lambda *a: (_ for _ in ()).throw(OSError("no flock on this file system"))
lock = run_lock.RunLock(Path(sys.argv[1]))
lock.acquire()
print("acquired", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(run_lock, "HEARTBEAT_TIMEOUT", 0.5)
    monkeypatch.setattr(run_lock, "HANDOVER_TIMEOUT", LIMIT_S)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def other(tmp_path):
    """other("flock" | "no flock", VARIABLE=value) -> a process that owns tmp_path."""
    started = []

    def start(kind="flock", **environment):
        command = [sys.executable, "-c", OWNER, str(tmp_path), kind]
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        assert process.stdout.readline() == "acquired\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def no_flock(monkeypatch):
    def refuse(*arguments):
        raise OSError("no flock on this file system")

    monkeypatch.setattr(fcntl, "flock", refuse)


def assert_in_use(run_dir, who=""):
    with pytest.raises(UserError, match=f"in use: .*{who}"):
        RunLock(run_dir).acquire()


def elsewhere(tmp_path, **fields):
    me = RunLock(tmp_path).identity
    run_lock.write_owner(tmp_path / ".lock.json", {**me, "host": "elsewhere", **fields})


@pytest.mark.parametrize("kind", ["flock", "no flock"])
def test_a_killed_owner_leaves_the_directory_free(tmp_path, other, monkeypatch, kind):
    process = other(kind)
    if kind == "no flock":
        no_flock(monkeypatch)
    assert_in_use(tmp_path, f"process {process.pid} on {socket.gethostname()}")
    process.kill()
    process.wait()
    mine = RunLock(tmp_path)
    mine.acquire()
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    mine.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_reused_pid_is_not_the_owner(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    run_lock.write_owner(
        tmp_path / ".lock.json",
        {**RunLock(tmp_path).identity, "born": psutil.Process().create_time() - 1000},
    )
    with RunLock(tmp_path):
        pass


def test_an_owner_on_another_host(tmp_path, monkeypatch):
    """It lives while its file is touched."""
    no_flock(monkeypatch)
    over = threading.Event()

    def touch():
        while not over.wait(0.1):
            os.utime(tmp_path / ".lock.json")

    elsewhere(tmp_path)
    thread = threading.Thread(target=touch)
    thread.start()
    assert_in_use(tmp_path, "on elsewhere")
    over.set()
    thread.join()
    elsewhere(tmp_path)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("script", "alive"),
    [
        ("echo 7 RUNNING 2", True),
        ("echo 7 RUNNING 3", False),
        ("echo 7 COMPLETING 2", False),
        ("echo 8 RUNNING 0; echo 7 RUNNING 2", True),  # an array: the lines of all its tasks
        ("echo 8 RUNNING 2", False),
        ("echo Invalid job id specified >&2; exit 1", False),
        ("echo Unable to contact slurm controller >&2; exit 1", True),  # nobody knows
    ],
)
def test_an_owner_without_a_heartbeat_is_what_slurm_says(tmp_path, monkeypatch, script, alive):
    """Its start of the job may be suspended."""
    no_flock(monkeypatch)
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    elsewhere(tmp_path, job="7", restart=2)
    if alive:
        assert_in_use(tmp_path, "on elsewhere")
    else:
        with RunLock(tmp_path):
            pass


def test_a_later_start_of_the_same_job_is_let_in(tmp_path, other, monkeypatch):
    process = other(SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert_in_use(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert_in_use(tmp_path)  # not a later start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        assert process.wait(LIMIT_S) == -signal.SIGTERM


def test_a_process_that_lost_the_lock_ends(tmp_path, other):
    process = other()
    elsewhere(tmp_path)
    assert process.wait(LIMIT_S) == EXIT_LOCK_LOST
    (tmp_path / ".lock.json").unlink()
    process = other()
    (tmp_path / ".lock.json").unlink()
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / ".lock.json").exists():  # removed: written again
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == process.pid


def test_a_dead_owner_does_not_block_and_a_second_one_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / ".lock.json").write_text("not JSON")
    with lock_run_dir(run):
        with (
            pytest.raises(UserError, match=rf"in use: process {os.getpid()} on \S+, since"),
            lock_run_dir(run),
        ):
            pass
    with lock_run_dir(run):
        pass
