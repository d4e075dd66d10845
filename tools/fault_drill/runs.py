"""One short training run: start it under a launcher, hold it at a step, find its workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from cjepa_dist.resilience.preemption import MAY_BE_IGNORED
from tools.fault_drill.schema import FaultDrill

TRAIN = "cjepa_dist.train_world_model"
STEPS = 16
TIMEOUT_S = 1800  # of a run that takes some seconds: the machine may be busy
POLL_S = 0.05
SMALL_MODEL = (
    "predictor.width=64",
    "predictor.depth=2",
    "predictor.heads=2",
    "predictor.mlp_dim=256",
    "predictor.dropout=0.1",
    "optimizer.name=muon",
    "val_windows=32",
    f"loop.steps={STEPS}",
    "loop.global_batch_size=8",
    "loop.checkpoint_every=4",
    "loop.log_every=1",
)


class DrillError(Exception):
    """A run did not behave as it must."""


class DrillRun:
    """One run directory and the command that trains in it, under a launcher.

    `reference` is the undisturbed run of as many processes, None for that run itself; `seconds` is
    how long the last `finish` took.
    """

    reference: DrillRun | None = None
    seconds = 0.0

    def __init__(self, config: FaultDrill, name: str, processes: int, launcher: str = "") -> None:
        self.config, self.processes = config, processes
        self.folder = Path(config.out) / f"{name}_{processes}".replace(" ", "_")
        self.launcher = launcher or ("python" if processes == 1 else "torchrun")
        self.log = self.folder.with_suffix(".log")
        self.hold_file = self.folder.with_suffix(".hold")
        if self.folder.is_mount():  # left by a drill that was killed
            subprocess.run(["umount", self.folder], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.log.parent.glob(f"{self.folder.name}.*"):
            path.unlink()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def arguments(self) -> list[str]:
        """The run's own arguments, those that every start of it has."""
        return [*SMALL_MODEL, f"data={self.config.data}", f"run={self.folder}"]

    def start(self, *extra: str, fault: str = "") -> subprocess.Popen[bytes]:
        """Start or resume the run; `fault` is what CJEPA_FAULT tells it to do to itself."""
        command = [*launcher_command(self.launcher, self.processes), TRAIN, *self.arguments()]
        environment = {
            **os.environ,
            "CJEPA_FAULT": fault,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",  # several runs share the machine
        }
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, *command, *extra],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def finish(self, *extra: str, fault: str = "") -> int:
        """Start or resume the run and wait for its end; the exit code."""
        began = time.monotonic()
        code = wait_for_exit(self.start(*extra, fault=fault))
        self.seconds = time.monotonic() - began
        return code

    def start_held(
        self, *extra: str, fault: str = ""
    ) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        """Start the run, and return when all of its workers hold after 5 steps.

        The checkpoint of step 4 is on disk then.

        Returns (the launcher, its workers by rank). `release` lets them go on.
        """
        hold = f"hold@5:{self.hold_file}"
        process = self.start(*extra, fault=",".join(filter(None, (hold, fault))))
        end = time.monotonic() + TIMEOUT_S
        # A checkpoint is written beside the following steps.
        while len(found := self.waiting()) < self.processes or not self.checkpoint(4).is_dir():
            if process.poll() is not None or time.monotonic() > end:
                raise DrillError(f"ended before step 5; see {self.log}")
            time.sleep(POLL_S)
        return process, [psutil.Process(found[rank]) for rank in sorted(found)]

    def waiting(self) -> dict[int, int]:
        """{rank: pid} of the workers that hold."""
        path = Path(f"{self.hold_file}.waiting")
        lines = path.read_text().splitlines() if path.exists() else []
        return {int(rank): int(pid) for rank, pid in (line.split() for line in lines)}

    def release(self) -> None:
        """Let the workers go on that hold."""
        self.hold_file.touch()

    def text(self) -> str:
        """All that the run has printed so far."""
        return self.log.read_text(errors="replace")

    def own_text(self) -> str:
        """The same without torchrun's report of how its workers ended."""
        return self.text().split("torch/distributed/elastic")[0]

    def checkpoint(self, step: int = STEPS) -> Path:
        """The folder of a checkpoint, by default of the last one."""
        return self.folder / "checkpoints" / f"step_{step:08d}"

    def weights(self) -> dict[str, torch.Tensor]:
        """The final weights."""
        return load_file(self.checkpoint() / "model.safetensors")

    def skipped_steps(self) -> int:
        """How many steps were skipped, as the last checkpoint says."""
        return json.loads((self.checkpoint() / "meta.json").read_text())["skipped"]


def end_ignoring_signals() -> None:
    """Let the runs have Ctrl-C and SIGHUP, also where nohup or a shell ignores them for us.

    What is ignored stays ignored in processes that are started; what is caught does not.
    """
    for number in MAY_BE_IGNORED:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def launcher_command(launcher: str, processes: int) -> list[str]:
    """The arguments of python up to the module that trains."""
    if launcher == "python":
        return ["-m"]
    if launcher == "torchrun":
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return ["-m", *torchrun, "-m"]
    accelerate = [
        "accelerate.commands.launch",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--num_processes={processes}",
    ]
    several = ["--multi_gpu", "--main_process_port=0"]
    return ["-m", *accelerate, *(["--cpu"] if processes == 1 else several), "-m"]


def wait_for_exit(
    process: subprocess.Popen[bytes], workers: list[psutil.Process] | None = None
) -> int:
    """The exit code of `process`; its `workers` must end too. Raises DrillError after a time."""
    try:
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for child in (*psutil.Process(process.pid).children(recursive=True), process):
            child.kill()
        raise DrillError(f"no end within {TIMEOUT_S} s") from None
    end = time.monotonic() + TIMEOUT_S
    while any(is_alive(worker) for worker in workers or ()):
        require(time.monotonic() < end, "training processes live on")
        time.sleep(POLL_S)
    return code


def send_signal(worker: psutil.Process, number: signal.Signals) -> None:
    """Send a signal, and return when the process has taken it: two at once may become one."""
    worker.send_signal(number)
    end = time.monotonic() + TIMEOUT_S
    while is_alive(worker) and number in pending_signals(worker.pid):
        require(time.monotonic() < end, f"process {worker.pid} takes no signal")
        time.sleep(POLL_S)


def pending_signals(pid: int) -> set[int]:
    """The signals to a process, not to one thread of it, that it has not taken yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return set()
    found = re.search(r"^ShdPnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return {number + 1 for number in range(64) if mask >> number & 1}


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def require(condition: object, otherwise: str) -> None:
    """Raises DrillError with `otherwise` if the condition is false."""
    if not condition:
        raise DrillError(otherwise)
