"""One short training run: start it under a launcher, wait for a step, find its workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tools.fault_drill.schema import FaultDrill

TRAIN = "cjepa_dist.train_world_model"
STEPS = 16
TIMEOUT_S = 900  # of a run that takes a second or two: the machine may be busy
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
    """One run directory and the command that trains in it, under a launcher."""

    def __init__(self, config: FaultDrill, name: str, processes: int, launcher: str = "") -> None:
        self.config, self.processes = config, processes
        self.folder = Path(config.out) / f"{name}_{processes}".replace(" ", "_")
        self.launcher = launcher or ("python" if processes == 1 else "torchrun")
        self.log = self.folder.with_suffix(".log")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def arguments(self) -> list[str]:
        """The run's own arguments, those that every start of it has."""
        return [*SMALL_MODEL, f"data={self.config.data}", f"run={self.folder}"]

    def start(self, *extra: str, fault: str = "") -> subprocess.Popen[bytes]:
        """Start or resume the run; `fault` is what CJEPA_FAULT tells it to do to itself."""
        command = [*launcher_command(self.launcher, self.processes), TRAIN, *self.arguments()]
        environment = {**os.environ, "CJEPA_FAULT": fault, "PYTHONUNBUFFERED": "1"}
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
        return wait_for_exit(self.start(*extra, fault=fault))

    def start_slow(
        self, *extra: str, fault: str = "pause@5"
    ) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        """Start the run and return after 5 steps: (the launcher, its workers by rank)."""
        process = self.start(*extra, fault=fault)
        metrics, end = self.folder / "metrics.jsonl", time.monotonic() + TIMEOUT_S
        while not (metrics.exists() and '{"step": 5, ' in metrics.read_text()):
            if process.poll() is not None or time.monotonic() > end:
                raise DrillError(f"ended before step 5; see {self.log}")
            time.sleep(0.01)
        return process, self.workers(process)

    def workers(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The processes that train, in the order of their ranks."""
        if self.launcher == "python":
            return [psutil.Process(process.pid)]
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if TRAIN in child.cmdline()]
        return sorted(workers, key=lambda worker: int(worker.environ().get("RANK", "0")))

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
    end = time.monotonic() + 60
    while any(is_alive(worker) for worker in workers or ()):
        require(time.monotonic() < end, "training processes live on")
        time.sleep(0.05)
    return code


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def require(condition: object, otherwise: str) -> None:
    """Raises DrillError with `otherwise` if the condition is false."""
    if not condition:
        raise DrillError(otherwise)
