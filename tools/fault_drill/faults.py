"""The faults: each breaks a fresh run and says what happened.

Resuming the run and comparing its weights is the same for all of them (`__main__.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.fault_drill.runs import (
    TIMEOUT_S,
    TRAIN,
    DrillRun,
    require,
    send_signal,
    wait_for_exit,
)

# Breaks a fresh run and returns (what happened, exit code).
BreakRun = Callable[[DrillRun], tuple[str, int]]


@dataclass(frozen=True)
class Fault:
    """A way to break a run, the numbers of processes to try it with, and its exit codes.

    With `nan` the run is compared with one that had the same NaN and nothing else.
    """

    break_run: BreakRun
    exit_codes: tuple[int, ...]
    processes: tuple[int, ...] = (1, 2)
    launcher: str = ""
    nan: bool = False
    needs_root: bool = False


def signal_worker(
    run: DrillRun, number: signal.Signals, rank: int, times: int = 1
) -> tuple[str, int]:
    """Send a signal to one of the processes that train."""
    process, workers = run.start_held()
    for _ in range(times):
        send_signal(workers[rank], number)
    run.release()
    code = wait_for_exit(process, workers)
    expected = 75 if run.launcher == "python" else 1
    require(code == expected, f"exit code {code}")
    codes = ", ".join(re.findall(r"exitcode +: (-?[0-9]+)", run.text()))
    stops = run.text().count("stopped by ")
    require(stops == 1, f"{stops} processes say that the run has stopped")
    of_workers = "" if run.launcher == "python" else f", workers' {codes}"
    return f"all ranks stop after one step more{of_workers}; {describe_resume_file(run)}", code


def signal_launcher(run: DrillRun, number: signal.Signals) -> tuple[str, int]:
    """Send a signal to the launcher only."""
    process, workers = run.start_held()
    process.send_signal(number)  # it reaches the workers, and ends their hold
    code = wait_for_exit(process, workers)
    dies = "dies, its workers treat that as a SIGTERM"
    how = dies if code < 0 else "passes it on, the workers stop"
    return f"the launcher {how}; {describe_resume_file(run)}", code


def describe_resume_file(run: DrillRun) -> str:
    """Why and where a run stopped, as it wrote itself."""
    path = run.folder / "resume.json"
    require(path.exists(), "no resume.json")
    content = json.loads(path.read_text())
    return f"resume.json: {content['reason']}, step {content['step']}"


def kill_workers(run: DrillRun, *ranks: int) -> tuple[str, int]:
    """kill -9 some of the processes that train."""
    process, workers = run.start_held()
    for worker in {workers[rank] for rank in ranks}:
        worker.kill()
    code = wait_for_exit(process, workers)
    return "dies; the launcher ends the other" if len(ranks) < len(workers) else "dies", code


def kill_while_saving(run: DrillRun) -> tuple[str, int]:
    """Die in the middle of writing a checkpoint."""
    code = run.finish(fault="kill-in-checkpoint@8:rank0")
    partial_folder = run.checkpoint(8).with_suffix(".partial")
    require(partial_folder.is_dir(), "no half-written checkpoint")
    return "a .partial folder is left, and not read", code


def nan_then_kill(run: DrillRun) -> tuple[str, int]:
    """A loss that is not finite, on the last rank; later all die."""
    code = run.finish(fault=f"nan@3:rank{run.processes - 1},kill@10")
    lines = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    require(steps == [4] and len(lines[0]["samples"]) == 8, f"skipped.jsonl: {lines}")
    return "step skipped on all ranks, its 8 samples named; killed later", code


def exceed_skip_budget(run: DrillRun) -> tuple[str, int]:
    """A loss that is not finite where none is allowed."""
    code = run.finish("loop.max_skipped_steps=0", fault=f"nan@3:rank{run.processes - 1}")
    is_clear = "more than loop.max_skipped_steps=0" in run.text()
    require(is_clear and "Traceback" not in run.own_text(), "no clear message")
    require(run.checkpoint(4).is_dir(), "no checkpoint of the last good state")
    return "one line, a checkpoint of the last good state", code


def hang(run: DrillRun) -> tuple[str, int]:
    """The last rank stops working."""
    minutes = run.config.hang_timeout_minutes
    if not minutes:
        assert run.reference is not None
        # The timeout must not be over while the run starts, on however busy a machine.
        minutes = max(12.0, 3 * run.reference.seconds) / 60
    code = run.finish(
        f"loop.hang_timeout_minutes={minutes:.3f}", fault=f"hang@5:rank{run.processes - 1}"
    )
    for rank in range(run.processes):
        path = run.folder / f"hang_rank{rank}.txt"
        require(path.exists() and "loop.py" in path.read_text(), f"no stack of rank {rank}")
    return f"stacks of all {run.processes} ranks written, all ended after the timeout", code


def start_second_run(run: DrillRun) -> tuple[str, int]:
    """Start another training in the same run directory."""
    process, _ = run.start_held()
    second = subprocess.run(
        [sys.executable, "-m", TRAIN, *run.arguments()],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "CJEPA_FAULT": ""},
    )
    run.release()
    first_code = wait_for_exit(process)
    pid = re.search(r"is in use: process (\d+) on \S+", second.stderr)
    require(pid, f"no clear refusal: {second.stderr[-300:]}")
    require(first_code == 0, "the first run did not finish")
    what = "the second is refused in one line with host and pid; the first runs on"
    return what, second.returncode


def fill_disk(run: DrillRun, *, metrics_too: bool = False) -> tuple[str, int]:
    """No space for a checkpoint, on a small tmpfs; then space again.

    With `metrics_too` the failed checkpoint keeps the disk full, so that metrics do not fit either.
    """
    assert run.reference is not None
    size = sum(path.stat().st_size for path in run.reference.checkpoint().iterdir())
    failed = run.hold_file.with_suffix(".failed")
    # The next step waits until the checkpoint has failed; its rest is removed when the training,
    # out of space for metrics, comes to wait for it.
    fault = f"hold@8:{failed}.waiting,hold-failed-checkpoint@8:{failed}" if metrics_too else ""
    run.folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", run.folder)
    try:
        code = run.finish(fault=fault)
        text = run.own_text()
        message = re.search(r"error: .*", text)
        is_clear = message and DISK_FULL in message[0] and str(run.folder) in message[0]
        require(is_clear and "Traceback" not in text, f"no clear message; see {run.log}")
        left = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
        require(left == ["step_00000004"], f"checkpoints: {left}")
        last = '"step": 12, ' in (run.folder / "metrics.jsonl").read_text()
        require(not (metrics_too and last), "the metrics found space")
        mount("-o", f"remount,size={20 * size}", run.folder)
        require(run.finish() == 0, f"not resumed; see {run.log}")
        kept = run.folder.with_name(run.folder.name + "_kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(run.folder, kept)
    finally:
        subprocess.run(["umount", run.folder], check=True)
    run.folder.rmdir()
    kept.rename(run.folder)
    what = "one line with the bytes needed and free; the checkpoint before is intact, "
    return what + "nothing is left of the new one", code


def mount(*arguments: str | Path) -> None:
    """Raises CalledProcessError where it fails."""
    subprocess.run(["mount", *arguments], check=True)


def damage_checkpoint(run: DrillRun) -> tuple[str, int]:
    """Change one bit of the newest checkpoint."""
    code = run.finish("loop.stop_at_step=12")
    require(code == 0, f"exit code {code}")
    path = next(run.checkpoint(12).glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "warned, passed over", code


def lose_checkpoints(run: DrillRun, hide: Callable[[Path], None]) -> tuple[str, int]:
    """Start the run while its checkpoints cannot be used; afterwards they are back."""
    code = run.finish("loop.stop_at_step=12")
    require(code == 0, f"exit code {code}")
    checkpoints, kept = run.checkpoint().parent, run.folder.with_suffix(".kept")
    shutil.copytree(checkpoints, kept)
    hide(checkpoints)
    before, said = snapshot(run.folder), len(run.own_text())
    code = run.finish()
    require(snapshot(run.folder) == before, "files were changed")
    lines = [line for line in run.own_text()[said:].splitlines() if line.startswith("error: ")]
    require(len(lines) >= 1 and "Traceback" not in run.own_text(), "no clear message")
    shutil.rmtree(checkpoints, ignore_errors=True)
    kept.rename(checkpoints)
    return "refused in one line, nothing changed; goes on once they are back", code


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The content of all files in a folder; links are not followed."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: path.read_bytes() for path in files}


def damage_all(checkpoints: Path) -> None:
    for path in checkpoints.glob("step_*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")


def refuse_to_be_read(checkpoints: Path) -> None:
    """A file of the newest checkpoint opens, and its first byte is an I/O error."""
    path = max(checkpoints.glob("step_*")) / "model.safetensors"
    path.unlink()
    path.symlink_to("/proc/self/mem")


DISK_FULL = "no space left for a checkpoint"  # part of the error message
TERM, USR1, USR2, KILL = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL
INT, HUP = signal.SIGINT, signal.SIGHUP

FAULTS = {
    "SIGTERM to the last rank": Fault(partial(signal_worker, number=TERM, rank=-1), (75, 1)),
    "SIGUSR1 to rank 0": Fault(partial(signal_worker, number=USR1, rank=0), (75, 1)),
    "SIGUSR2 twice to rank 0": Fault(partial(signal_worker, number=USR2, rank=0, times=2), (75, 1)),
    "Ctrl-C to rank 0": Fault(partial(signal_worker, number=INT, rank=0), (75, 1)),
    "SIGHUP to the last rank": Fault(partial(signal_worker, number=HUP, rank=-1), (75, 1)),
    "SIGTERM to torchrun": Fault(
        partial(signal_launcher, number=TERM), (1, -15), launcher="torchrun"
    ),
    "SIGKILL to torchrun": Fault(partial(signal_launcher, number=KILL), (-9,), launcher="torchrun"),
    "SIGTERM to accelerate launch": Fault(
        partial(signal_launcher, number=TERM), (1, -15), launcher="accelerate"
    ),
    "kill -9 of rank 0": Fault(lambda run: kill_workers(run, 0), (1,), (2,)),
    "kill -9 of the last rank": Fault(lambda run: kill_workers(run, -1), (1,), (2,)),
    "kill -9 of all": Fault(lambda run: kill_workers(run, 0, -1), (1, -9)),
    "kill -9 within a checkpoint": Fault(kill_while_saving, (1, -9)),
    "nan and a later kill -9": Fault(nan_then_kill, (1, -9), nan=True),
    "nan beyond the budget": Fault(exceed_skip_budget, (1, 2), nan=True),
    "hang": Fault(hang, (1, 70)),
    "two runs on one folder": Fault(start_second_run, (2,)),
    "disk full": Fault(fill_disk, (1, 2), needs_root=True),
    "disk full for metrics too": Fault(
        partial(fill_disk, metrics_too=True), (1, 2), needs_root=True
    ),
    "newest checkpoint damaged": Fault(damage_checkpoint, (0,)),
    "all checkpoints damaged": Fault(partial(lose_checkpoints, hide=damage_all), (1, 2)),
    "checkpoint that cannot be read": Fault(
        partial(lose_checkpoints, hide=refuse_to_be_read), (1, 2)
    ),
    "checkpoints on a disk that is away": Fault(
        partial(lose_checkpoints, hide=shutil.rmtree), (1, 2)
    ),
}
