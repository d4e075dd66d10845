"""One short training run under a launcher: start it, wait for a step, find its workers, read its result."""

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

STEPS, TIMEOUT_S = 16, 900  # seconds for a run of a second or two: the machine may be busy

SMALL_MODEL = (
    "predictor.width=64", "predictor.depth=2", "predictor.heads=2", "predictor.mlp_dim=256", "predictor.dropout=0.1", f"loop.steps={STEPS}",
    "loop.global_batch_size=8", "loop.checkpoint_every=4", "loop.log_every=1", "val_windows=32", "optimizer.name=muon",
)  # fmt: skip

PROJECT = Path(__file__).resolve().parents[2]


class DrillError(Exception):
    """A drill did not go as it must."""


class DrillRun:
    """One run folder and the command that trains in it, under a launcher."""

    def __init__(self, config: FaultDrill, name: str, processes: int, launcher: str = "") -> None:
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
        arguments = [*SMALL_MODEL, f"data={self.config.data}", f"run={self.folder}", *extra]
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
        return wait_for_exit(self.start(*extra, fault=fault))

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, process: subprocess.Popen[bytes], step: int) -> None:
        """Until `step` steps are finished."""
        lines, end = self.folder / "metrics.jsonl", time.monotonic() + TIMEOUT_S
        while not (lines.exists() and f'{{"step": {step}, ' in lines.read_text()):
            if process.poll() is not None or time.monotonic() > end:
                raise DrillError(f"ended before step {step}; see {self.log}")
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


def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for child in (*psutil.Process(process.pid).children(recursive=True), process):
            child.kill()
        raise DrillError(f"no end within {TIMEOUT_S} s") from None


def require(fact: object, otherwise: str) -> None:
    if not fact:
        raise DrillError(otherwise)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """The training processes end too, not only what started them."""
    end = time.monotonic() + 60
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        require(time.monotonic() < end, "training processes live on")
        time.sleep(0.05)
