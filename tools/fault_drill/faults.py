"""The faults: each breaks a fresh run and says what happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.fault_drill.runs import (
    PROJECT,
    SMALL_MODEL,
    STEPS,
    TIMEOUT_S,
    DrillRun,
    require,
    wait_for_exit,
    wait_until_gone,
)

# Each fault takes a fresh Run, breaks it and returns (what happened, exit code). Resuming and comparing is the same for all.
Fault = Callable[[DrillRun], tuple[str, int]]


def signal_worker(number: signal.Signals, rank: int, *, times: int = 1) -> Fault:
    def fault(run: DrillRun) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        for _ in range(times):
            workers[rank].send_signal(number)
            time.sleep(0.2)
        code = wait_for_exit(process)
        wait_until_gone(workers)
        require(code == (75 if run.launcher == "python" else 1), f"exit code {code}")
        codes = (
            f", workers' {', '.join(re.findall(r'exitcode +: (-?[0-9]+)', run.text()))}"
            if run.launcher != "python"
            else ""
        )
        return f"all ranks stop after one step more{codes}; {describe_resume_marker(run)}", code

    return fault


def signal_launcher(number: signal.Signals) -> Fault:
    def fault(run: DrillRun) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        process.send_signal(number)
        code = wait_for_exit(process)
        wait_until_gone(workers)
        how = (
            "dies, its workers take that as a SIGTERM"
            if code < 0
            else "passes it on, the workers stop"
        )
        return f"the launcher {how}; {describe_resume_marker(run)}", code

    return fault


def describe_resume_marker(run: DrillRun) -> str:
    path = run.folder / "resume.json"
    require(path.exists(), "no resume.json")
    content = json.loads(path.read_text())
    return f"resume.json: {content['reason']}, step {content['step']}"


def kill_workers(*ranks: int) -> Fault:
    def fault(run: DrillRun) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        for worker in {workers[rank] for rank in ranks}:
            worker.kill()
        code = wait_for_exit(process)
        wait_until_gone(workers)
        return "dies; the launcher ends the other" if len(ranks) < len(workers) else "dies", code

    return fault


def kill_while_saving(run: DrillRun) -> tuple[str, int]:
    code = run.finish(fault="kill-in-checkpoint@8:rank0")
    require(
        (run.folder / "checkpoints" / "step_00000008.partial").is_dir(),
        "no half-written checkpoint",
    )
    return "a .partial folder is left, and not read", code


def nan_then_kill(run: DrillRun) -> tuple[str, int]:
    code = run.finish(fault=f"nan@3:rank{run.processes - 1},kill@10")
    lines = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    require(
        [line["step"] for line in lines] == [4] and len(lines[0]["samples"]) == 8,
        f"skipped.jsonl: {lines}",
    )
    return "step skipped on all ranks, its 8 samples named; killed later", code


def exceed_skip_budget(run: DrillRun) -> tuple[str, int]:
    code = run.finish("loop.max_skipped_steps=0", fault=f"nan@3:rank{run.processes - 1}")
    require(
        "more than loop.max_skipped_steps=0" in run.text()
        and "Traceback" not in log_before_torchrun_report(run),
        "no clear message",
    )
    require(
        (run.folder / "checkpoints" / "step_00000004").is_dir(),
        "no checkpoint of the last good state",
    )
    return "one line, a checkpoint of the last good state", code


def log_before_torchrun_report(run: DrillRun) -> str:
    """The log without torchrun's own report of what its workers ended with."""
    return run.text().split("torch/distributed/elastic")[0]


def hang(run: DrillRun) -> tuple[str, int]:
    process = run.start(
        f"loop.hang_timeout_minutes={run.config.hang_timeout_minutes}",
        fault=f"hang@5:rank{run.processes - 1}",
    )
    run.wait_for(process, 5)
    began, workers = time.monotonic(), run.workers(process)
    code = wait_for_exit(process)
    wait_until_gone(workers)
    spent = time.monotonic() - began
    for rank in range(run.processes):
        path = run.folder / f"hang_rank{rank}.txt"
        require(path.exists() and "loop.py" in path.read_text(), f"no stack of rank {rank}")
    return (
        f"stacks of all {run.processes} ranks written, ended {spent:.0f} s after the last step",
        code,
    )


def start_second_run(run: DrillRun) -> tuple[str, int]:
    process = run.start(fault="pause@5")
    run.wait_for(process, 5)
    workers = run.workers(process)
    for worker in workers:
        worker.suspend()  # so that it cannot be done before the other has started
    other = subprocess.run(
        [sys.executable, "-m", "cjepa_dist.train_world_model", *SMALL_MODEL, f"data={run.config.data}", f"run={run.folder}"],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env={**os.environ, "CJEPA_FAULT": ""},
    )  # fmt: skip
    for worker in workers:
        worker.resume()
    first = wait_for_exit(process)
    pid = re.search(r"is in use: process (\d+) on \S+", other.stderr)
    require(pid, f"no clear refusal: {other.stderr[-300:]}")
    require(first == 0, "the first run did not finish")
    return (
        "the second is refused in one line with host and pid; the first runs on",
        other.returncode,
    )


def fill_disk(run: DrillRun, *, linger: bool = False) -> tuple[str, int]:
    """`linger`: a checkpoint keeps the disk full for a while, so that a line of metrics finds no room either."""
    reference = (
        run.folder.parent / f"undisturbed_{run.processes}" / "checkpoints" / f"step_{STEPS:08d}"
    )
    size = sum(path.stat().st_size for path in reference.iterdir())
    run.folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", run.folder)
    try:
        code = run.finish(fault="linger@8" if linger else "")
        text = log_before_torchrun_report(run)
        message = re.search(r"error: .*", text)
        clear = (
            message
            and "no room for a checkpoint" in message[0]
            and str(run.folder) in message[0]
            and "Traceback" not in text
        )
        require(clear, f"no clear message; see {run.log}")
        left = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
        require(left == ["step_00000004"], f"checkpoints: {left}")
        mount("-o", f"remount,size={20 * size}", run.folder)
        require(run.finish() == 0, f"not resumed; see {run.log}")
        kept = run.folder.with_name(run.folder.name + "_kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(run.folder, kept)
    finally:
        subprocess.run(["umount", run.folder], check=True)
    run.folder.rmdir()
    kept.rename(run.folder)
    return (
        "one line with the bytes needed and free; the checkpoint before is whole, no rest of the new one",
        code,
    )


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def damage_checkpoint(run: DrillRun) -> tuple[str, int]:
    code = run.finish("loop.stop_at_step=12")
    require(code == 0, f"exit code {code}")
    path = next((run.folder / "checkpoints" / "step_00000012").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "warned, passed over", code


# name: (fault, processes, launcher, exit codes it may have). Those with "nan" are compared with a run that had the same NaN alone.
FAULTS: dict[str, tuple[Fault, tuple[int, ...], str, tuple[int, ...]]] = {
    "SIGTERM to the last rank": (signal_worker(signal.SIGTERM, -1), (1, 2), "", (75, 1)),
    "SIGUSR1 to rank 0": (signal_worker(signal.SIGUSR1, 0), (1, 2), "", (75, 1)),
    "SIGUSR2 twice to rank 0": (signal_worker(signal.SIGUSR2, 0, times=2), (1, 2), "", (75, 1)),
    "SIGTERM to torchrun": (signal_launcher(signal.SIGTERM), (1, 2), "torchrun", (1, -15)),
    "SIGKILL to torchrun": (signal_launcher(signal.SIGKILL), (1, 2), "torchrun", (-9,)),
    "SIGTERM to accelerate launch": (
        signal_launcher(signal.SIGTERM),
        (1, 2),
        "accelerate",
        (1, -15),
    ),
    "kill -9 of rank 0": (kill_workers(0), (2,), "", (1,)),
    "kill -9 of the last rank": (kill_workers(-1), (2,), "", (1,)),
    "kill -9 of all": (kill_workers(0, -1), (1, 2), "", (1, -9)),
    "kill -9 within a checkpoint": (kill_while_saving, (1, 2), "", (1, -9)),
    "nan and a later kill -9": (nan_then_kill, (1, 2), "", (1, -9)),
    "nan beyond the budget": (exceed_skip_budget, (1, 2), "", (1, 2)),
    "hang": (hang, (1, 2), "", (1, 70)),
    "two runs on one folder": (start_second_run, (1, 2), "", (2,)),
    "disk full": (fill_disk, (1, 2), "", (1, 2)),
    "disk full for metrics too": (partial(fill_disk, linger=True), (1, 2), "", (1, 2)),
    "newest checkpoint damaged": (damage_checkpoint, (1, 2), "", (0,)),
}
