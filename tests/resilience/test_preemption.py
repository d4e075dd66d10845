"""Signals and the checkpoint clock."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from cjepa_dist.errors import EXIT_PREEMPTED
from cjepa_dist.resilience.preemption import MAY_BE_IGNORED, SIGNALS, Preemption
from tests.fork_server import PROJECT
from tests.training.test_resume import TINY_WORLD

TRAIN = "cjepa_dist.train_world_model"


def wait_until(condition, process, seconds=300):
    """Wait for a state that a living process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def test_signals_and_clock_are_noted_and_handlers_restored(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    (tmp_path / "resume.json").write_text("{}")
    with Preemption(tmp_path, minutes=1e-9) as preemption:
        assert not (tmp_path / "resume.json").exists()
        assert preemption.agreed() == 0 and not preemption.checkpoint_due
        assert preemption.agreed() == 0 and preemption.checkpoint_due  # one step later
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        preemption.agreed()
        assert preemption.agreed() == signal.SIGUSR1
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    try:
        with Preemption(tmp_path, minutes=0) as preemption:
            assert preemption.exit_code(signal.SIGUSR1, 7) == EXIT_PREEMPTED == 75
        assert json.loads((tmp_path / "resume.json").read_text())["reason"] == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGUSR1)  # ignored while the process ends
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def not_ignored():
    """Processes that the test starts do not ignore Ctrl-C and SIGHUP, as pytest's workers may do.

    What is caught here is set to its default in them; what is ignored stays ignored.
    """
    before = {number: signal.signal(number, lambda *_: None) for number in MAY_BE_IGNORED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", MAY_BE_IGNORED)
def test_what_the_starter_ignores_stays_ignored(tmp_path, number):
    """nohup ignores SIGHUP; a shell ignores SIGINT for what it starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Preemption(tmp_path, minutes=0) as preemption:
            os.kill(os.getpid(), number)
            preemption.agreed()
            assert preemption.agreed() == 0
    finally:
        signal.signal(number, before)


def test_ctrl_c_and_a_closed_terminal_leave_a_checkpoint_and_a_line(
    small_data, tmp_path, command, not_ignored
):
    """Each stops a run that is held at a step; the same command goes on to the end."""
    run = tmp_path / "run"
    arguments = (f"data={small_data}", f"run={run}", *TINY_WORLD, "loop.steps=8")
    for number, step in ((signal.SIGINT, 2), (signal.SIGHUP, 4)):
        hold = tmp_path / f"hold{step}"
        process = subprocess.Popen(
            [sys.executable, "-m", TRAIN, *arguments],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CJEPA_FAULT": f"hold@{step}:{hold}"},
        )
        wait_until(lambda hold=hold: hold.with_name(f"{hold.name}.waiting").exists(), process)
        process.send_signal(number)
        out, errors = process.communicate(timeout=300)
        name = signal.Signals(number).name
        assert process.returncode == EXIT_PREEMPTED, errors
        assert "Traceback" not in errors and f"stopped by {name} after step " in out
        assert json.loads((run / "resume.json").read_text())["reason"] == name
        stopped = json.loads((run / "last_checkpoint.json").read_text())["step"]
        assert (run / "checkpoints" / f"step_{stopped:08d}").is_dir() and stopped >= step
    done = command(TRAIN, *arguments)
    assert done.returncode == 0 and "resumed from" in done.stdout, done.stderr


def test_ctrl_c_before_the_loop_is_one_line(tmp_path, not_ignored):
    """A command that reads its data, here from a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(300)
        data = f"data=http://127.0.0.1:{server.getsockname()[1]}/data"
        process = subprocess.Popen(
            [sys.executable, "-m", TRAIN, data, f"run={tmp_path / 'run'}"],
            cwd=PROJECT,
            stderr=subprocess.PIPE,
            text=True,
        )
        with server.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and errors == "stopped by Ctrl-C\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_workers_of_a_simulation_end_with_it(tmp_path, number):
    arguments = (f"out={tmp_path / 'out'}", "train=10000", "val=0", "test=0", "workers=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.simulate", *arguments],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parent = psutil.Process(process.pid)

    def workers():
        return [p for p in parent.children() if any("spawn_main" in word for word in p.cmdline())]

    wait_until(lambda: len(workers()) == 2, process)
    children = parent.children(recursive=True)
    process.send_signal(number)
    process.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    for child in left:
        child.kill()
    assert not left
