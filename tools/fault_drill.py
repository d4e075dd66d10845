"""Break short runs in every way we know, resume each to its end, and compare: `python -m tools.fault_drill data=DIR out=DIR2`.

    an undisturbed run  ──┬──> final weights
    fault ──> resumed   ──┘    equal bit for bit?  ──> OUT/table.md, exit code 1 if any fault left a trace

Faults are real where they can be: signals and kills come from here, the full disk is a small tmpfs (needs root), processes are started by
torchrun and by accelerate launch. NaN, a hang and death within the writing of a checkpoint come from CJEPA_FAULT (resilience/fault_injection.py).
"""

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.errors import UserError

STEPS, LIMIT = 16, 900  # seconds for a run of a second or two: the machine may be busy
SMALL = (
    "predictor.width=64", "predictor.depth=2", "predictor.heads=2", "predictor.mlp_dim=256", "predictor.dropout=0.1", f"loop.steps={STEPS}",
    "loop.global_batch_size=8", "loop.checkpoint_every=4", "loop.log_every=1", "val_windows=32", "optimizer.name=muon",
)  # fmt: skip
PROJECT = Path(__file__).resolve().parents[1]


@dataclass
class Drill:
    """Every known fault on short runs of a small world model, each resumed to the end and compared with an undisturbed run."""

    data: str = option(MISSING, "folder of slot shards, 7 slots x 128")
    out: str = option(MISSING, "folder for the runs and table.md")
    only: list[str] = option(
        [],
        "faults to try, as in the table's first column and its number of processes: `hang@2`; none = all",
    )
    hang_timeout_minutes: float = option(
        0.2,
        "loop.hang_timeout_minutes of the run that hangs; more on a busy machine",
        unit="minutes",
        least=0.01,
    )


@dataclass
class Result:
    what: str
    code: int
    resumed: str
    equal: bool
    skipped: str = ""


class Failed(Exception):
    """A drill did not go as it must."""


class Run:
    """One run folder and the command that trains in it, under a launcher."""

    def __init__(self, config: Drill, name: str, processes: int, launcher: str = "") -> None:
        self.config, self.processes = config, processes
        self.folder = Path(config.out) / f"{name}_{processes}".replace(" ", "_")
        self.launcher = launcher or ("python" if processes == 1 else "torchrun")
        self.log = self.folder.with_suffix(".log")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def start(self, *extra: str, fault: str = "") -> subprocess.Popen[bytes]:
        many = [
            "--nproc_per_node" if self.launcher == "torchrun" else "--num_processes",
            str(self.processes),
        ]
        accelerate = [
            "accelerate.commands.launch",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            *many,
        ]
        start = {
            "python": [],
            "torchrun": ["torch.distributed.run", "--standalone", *many, "-m"],
            "accelerate": [
                *accelerate,
                *(
                    ["--cpu"]
                    if self.processes == 1
                    else ["--multi_gpu", "--main_process_port", "0"]
                ),
                "-m",
            ],
        }[self.launcher]
        arguments = [*SMALL, f"data={self.config.data}", f"run={self.folder}", *extra]
        command = [sys.executable, "-m", *start, "cjepa_dist.train_world_model", *arguments]
        with self.log.open("a") as log:
            environment = {**os.environ, "CJEPA_FAULT": fault, "PYTHONUNBUFFERED": "1"}
            return subprocess.Popen(
                command,
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def finish(self, *extra: str, fault: str = "") -> int:
        return wait(self.start(*extra, fault=fault))

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, process: subprocess.Popen[bytes], step: int) -> None:
        """Until `step` steps are finished."""
        lines, end = self.folder / "metrics.jsonl", time.monotonic() + LIMIT
        while not (lines.exists() and f'{{"step": {step}, ' in lines.read_text()):
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"ended before step {step}; see {self.log}")
            time.sleep(0.01)

    def workers(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Processes that train, in the order of their ranks."""
        if self.launcher == "python":
            return [psutil.Process(process.pid)]
        found = [
            p
            for p in psutil.Process(process.pid).children(recursive=True)
            if "cjepa_dist.train_world_model" in p.cmdline()
        ]
        return sorted(found, key=lambda p: int(p.environ().get("RANK", "0")))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")

    def skipped(self) -> int:
        return json.loads(
            (self.folder / "checkpoints" / f"step_{STEPS:08d}" / "meta.json").read_text()
        )["skipped"]


def wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        for child in (*psutil.Process(process.pid).children(recursive=True), process):
            child.kill()
        raise Failed(f"no end within {LIMIT} s") from None


def need(fact: object, otherwise: str) -> None:
    if not fact:
        raise Failed(otherwise)


def gone(processes: list[psutil.Process]) -> None:
    """The training processes end too, not only what started them."""
    end = time.monotonic() + 60
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        need(time.monotonic() < end, "training processes live on")
        time.sleep(0.05)


# Each fault takes a fresh Run, breaks it and returns (what happened, exit code). Resuming and comparing is the same for all.
Fault = Callable[[Run], tuple[str, int]]


def signalled(number: signal.Signals, rank: int, *, times: int = 1) -> Fault:
    def fault(run: Run) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        for _ in range(times):
            workers[rank].send_signal(number)
            time.sleep(0.2)
        code = wait(process)
        gone(workers)
        need(code == (75 if run.launcher == "python" else 1), f"exit code {code}")
        codes = (
            f", workers' {', '.join(re.findall(r'exitcode +: (-?[0-9]+)', run.text()))}"
            if run.launcher != "python"
            else ""
        )
        return f"all ranks stop after one step more{codes}; {marker(run)}", code

    return fault


def launcher_signalled(number: signal.Signals) -> Fault:
    def fault(run: Run) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        process.send_signal(number)
        code = wait(process)
        gone(workers)
        how = (
            "dies, its workers take that as a SIGTERM"
            if code < 0
            else "passes it on, the workers stop"
        )
        return f"the launcher {how}; {marker(run)}", code

    return fault


def marker(run: Run) -> str:
    path = run.folder / "resume.json"
    need(path.exists(), "no resume.json")
    content = json.loads(path.read_text())
    return f"resume.json: {content['reason']}, step {content['step']}"


def killed(*ranks: int) -> Fault:
    def fault(run: Run) -> tuple[str, int]:
        process = run.start(fault="pause@5")
        run.wait_for(process, 5)
        workers = run.workers(process)
        for worker in {workers[rank] for rank in ranks}:
            worker.kill()
        code = wait(process)
        gone(workers)
        return "dies; the launcher ends the other" if len(ranks) < len(workers) else "dies", code

    return fault


def killed_in_checkpoint(run: Run) -> tuple[str, int]:
    code = run.finish(fault="kill-in-checkpoint@8:rank0")
    need(
        (run.folder / "checkpoints" / "step_00000008.partial").is_dir(),
        "no half-written checkpoint",
    )
    return "a .partial folder is left, and not read", code


def nan_and_killed(run: Run) -> tuple[str, int]:
    code = run.finish(fault=f"nan@3:rank{run.processes - 1},kill@10")
    lines = [json.loads(line) for line in (run.folder / "skipped.jsonl").read_text().splitlines()]
    need(
        [line["step"] for line in lines] == [4] and len(lines[0]["samples"]) == 8,
        f"skipped.jsonl: {lines}",
    )
    return "step skipped on all ranks, its 8 samples named; killed later", code


def budget_spent(run: Run) -> tuple[str, int]:
    code = run.finish("loop.max_skipped_steps=0", fault=f"nan@3:rank{run.processes - 1}")
    need(
        "more than loop.max_skipped_steps=0" in run.text() and "Traceback" not in first_part(run),
        "no clear message",
    )
    need(
        (run.folder / "checkpoints" / "step_00000004").is_dir(),
        "no checkpoint of the last good state",
    )
    return "one line, a checkpoint of the last good state", code


def first_part(run: Run) -> str:
    """The log without torchrun's own report of what its workers ended with."""
    return run.text().split("torch/distributed/elastic")[0]


def hung(run: Run) -> tuple[str, int]:
    process = run.start(
        f"loop.hang_timeout_minutes={run.config.hang_timeout_minutes}",
        fault=f"hang@5:rank{run.processes - 1}",
    )
    run.wait_for(process, 5)
    began, workers = time.monotonic(), run.workers(process)
    code = wait(process)
    gone(workers)
    spent = time.monotonic() - began
    for rank in range(run.processes):
        path = run.folder / f"hang_rank{rank}.txt"
        need(path.exists() and "loop.py" in path.read_text(), f"no stack of rank {rank}")
    return (
        f"stacks of all {run.processes} ranks written, ended {spent:.0f} s after the last step",
        code,
    )


def second_run(run: Run) -> tuple[str, int]:
    process = run.start(fault="pause@5")
    run.wait_for(process, 5)
    workers = run.workers(process)
    for worker in workers:
        worker.suspend()  # so that it cannot be done before the other has started
    other = subprocess.run(
        [sys.executable, "-m", "cjepa_dist.train_world_model", *SMALL, f"data={run.config.data}", f"run={run.folder}"],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=LIMIT, env={**os.environ, "CJEPA_FAULT": ""},
    )  # fmt: skip
    for worker in workers:
        worker.resume()
    first = wait(process)
    pid = re.search(r"is in use: process (\d+) on \S+", other.stderr)
    need(pid, f"no clear refusal: {other.stderr[-300:]}")
    need(first == 0, "the first run did not finish")
    return (
        "the second is refused in one line with host and pid; the first runs on",
        other.returncode,
    )


def disk_full(run: Run, *, linger: bool = False) -> tuple[str, int]:
    """`linger`: a checkpoint keeps the disk full for a while, so that a line of metrics finds no room either."""
    reference = (
        run.folder.parent / f"undisturbed_{run.processes}" / "checkpoints" / f"step_{STEPS:08d}"
    )
    size = sum(path.stat().st_size for path in reference.iterdir())
    run.folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", run.folder)
    try:
        code = run.finish(fault="linger@8" if linger else "")
        text = first_part(run)
        message = re.search(r"error: .*", text)
        clear = (
            message
            and "no room for a checkpoint" in message[0]
            and str(run.folder) in message[0]
            and "Traceback" not in text
        )
        need(clear, f"no clear message; see {run.log}")
        left = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
        need(left == ["step_00000004"], f"checkpoints: {left}")
        mount("-o", f"remount,size={20 * size}", run.folder)
        need(run.finish() == 0, f"not resumed; see {run.log}")
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


def damaged(run: Run) -> tuple[str, int]:
    code = run.finish("loop.stop_at_step=12")
    need(code == 0, f"exit code {code}")
    path = next((run.folder / "checkpoints" / "step_00000012").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "warned, passed over", code


# name: (fault, processes, launcher, exit codes it may have). Those with "nan" are compared with a run that had the same NaN alone.
FAULTS: dict[str, tuple[Fault, tuple[int, ...], str, tuple[int, ...]]] = {
    "SIGTERM to the last rank": (signalled(signal.SIGTERM, -1), (1, 2), "", (75, 1)),
    "SIGUSR1 to rank 0": (signalled(signal.SIGUSR1, 0), (1, 2), "", (75, 1)),
    "SIGUSR2 twice to rank 0": (signalled(signal.SIGUSR2, 0, times=2), (1, 2), "", (75, 1)),
    "SIGTERM to torchrun": (launcher_signalled(signal.SIGTERM), (1, 2), "torchrun", (1, -15)),
    "SIGKILL to torchrun": (launcher_signalled(signal.SIGKILL), (1, 2), "torchrun", (-9,)),
    "SIGTERM to accelerate launch": (
        launcher_signalled(signal.SIGTERM),
        (1, 2),
        "accelerate",
        (1, -15),
    ),
    "kill -9 of rank 0": (killed(0), (2,), "", (1,)),
    "kill -9 of the last rank": (killed(-1), (2,), "", (1,)),
    "kill -9 of all": (killed(0, -1), (1, 2), "", (1, -9)),
    "kill -9 within a checkpoint": (killed_in_checkpoint, (1, 2), "", (1, -9)),
    "nan and a later kill -9": (nan_and_killed, (1, 2), "", (1, -9)),
    "nan beyond the budget": (budget_spent, (1, 2), "", (1, 2)),
    "hang": (hung, (1, 2), "", (1, 70)),
    "two runs on one folder": (second_run, (1, 2), "", (2,)),
    "disk full": (disk_full, (1, 2), "", (1, 2)),
    "disk full for metrics too": (partial(disk_full, linger=True), (1, 2), "", (1, 2)),
    "newest checkpoint damaged": (damaged, (1, 2), "", (0,)),
}


def main(config: Drill) -> int:
    wanted = [
        (name, n) for n in (1, 2) for name, (_, counts, _, _) in FAULTS.items() if n in counts
    ]
    if config.only:
        if unknown := set(config.only) - {f"{name}@{n}" for name, n in wanted}:
            raise UserError(
                f"only: unknown {', '.join(sorted(unknown))}; there are {', '.join(f'{name}@{n}' for name, n in wanted)}"
            )
        wanted = [(name, n) for name, n in wanted if f"{name}@{n}" in config.only]
    rows = [
        "| fault | processes | what happened | exit code | resumed from | final weights equal |",
        "|---|---|---|---|---|---|",
    ]
    bad, references = 0, References(config)
    for name, n in wanted:
        began = time.monotonic()
        try:
            result = drill(config, name, n, references)
        except Failed as error:
            result = Result(f"FAILED: {error}", -1, "", False)
        bad += not result.equal
        equal = result.skipped or ("yes" if result.equal else "NO")
        rows.append(
            f"| {name} | {n} | {result.what} | {result.code} | {result.resumed} | {equal} |"
        )
        print(f"{rows[-1]}  {time.monotonic() - began:.0f} s", flush=True)
        (Path(config.out) / "table.md").write_text("\n".join([*rows, ""]))
    print("\n" + "\n".join(rows))
    print(f"\n{len(wanted)} faults, {bad} of them left a trace")
    return 1 if bad else 0


class References:
    """Undisturbed runs, made when first needed: by number of processes, without and with the NaN."""

    def __init__(self, config: Drill) -> None:
        self.config = config
        self.made: dict[tuple[int, bool], Run] = {}

    def get(self, processes: int, *, nan: bool) -> Run:
        if (processes, nan) not in self.made:
            run = Run(self.config, "undisturbed nan" if nan else "undisturbed", processes)
            code = run.finish(fault=f"nan@3:rank{processes - 1}" if nan else "")
            if code:
                raise UserError(f"the undisturbed run failed with exit code {code}; see {run.log}")
            self.made[processes, nan] = run
        return self.made[processes, nan]


def drill(config: Drill, name: str, processes: int, references: References) -> Result:
    """Break a run, resume it to the end, compare."""
    fault, _, launcher, codes = FAULTS[name]
    if "disk full" in name and os.geteuid() != 0:
        return Result("not tried: a small tmpfs needs root", 0, "", True, skipped="not tried")
    reference = references.get(processes, nan="nan" in name)
    run = Run(config, name, processes, launcher)
    what, code = fault(run)
    need(code in codes, f"exit code {code}, not {' or '.join(map(str, codes))}; see {run.log}")
    if not (run.folder / "done.json").exists():
        need(run.finish() == 0, f"not resumed; see {run.log}")
    found = re.findall(r"resumed from \S*step_0*(\d+)", run.text())
    equal, other = run.weights(), reference.weights()
    same = equal.keys() == other.keys() and all(
        torch.equal(equal[key], other[key]) for key in equal
    )
    need(run.skipped() == int("nan" in name), f"{run.skipped()} skipped steps counted")
    return Result(what, code, f"step {found[-1]}" if found else "not needed", same)


if __name__ == "__main__":
    command_line.launch(Drill, main)
