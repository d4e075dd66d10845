"""What the loop costs beside the step itself, and what more processes would: `python -m tools.bench training [CONFIG.yaml] key=value ...`.

    one process, in turns:  a block of steps of training/loop.py | a block of bare steps | ...  ──> ratio of each pair ──> median
    then: the time of its checkpoints; a new process from its start to the first step after the checkpoint
    then two real processes under each engine: the bytes they send a step
    then counted, not measured: FLOP, bytes all-reduced ──> a model of the step on N H100s, assumptions printed

A bare step is the same task, optimizer and batches (which are in memory already), without feed, telemetry, guard, skipping, seeds. The
blocks take turns within the run, so that a busy machine harms both alike; there, trust the ratio of processor times.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.runtime.device import make_accelerator, native_precision
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.flops import meta_copy, step_flops
from cjepa_dist.training.loop import train
from tools.bench.bare_step import BareStep
from tools.bench.comm_bytes import comm_bytes_table as tell
from tools.bench.comm_bytes import measure_comm_bytes
from tools.bench.harness import synchronize
from tools.bench.random_data import write_random_slots
from tools.bench.scaling import StepCost, scaling_table

MAX_OVERHEAD = 0.03

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class BenchTraining:
    """Overhead of the training loop, checkpoints, restart, and a model of more GPUs; on random slots."""

    config: str = option(
        "configs/world_model/quickstart.yaml",
        "config of train_world_model; contact_share is left out",
    )
    change: list[str] = option([], "key=value of that config")
    block: int = option(
        50, "steps of a block; a line of metrics is written once in it", unit="steps", least=1
    )
    rounds: int = option(6, "pairs of blocks; medians are shown", least=1)
    videos: int = option(40, "videos of random slots", unit="videos", least=1)
    gpus: list[int] = option(
        [1, 8, 16, 64], "numbers of H100s in the model of the step; 8 a machine"
    )
    engines: list[str] = option(
        ["ddp", "fsdp2", "zero1", "zero2", "zero3"],
        "engines whose traffic is measured, on CPUs; [] = none",
    )
    out: str = option("", "JSON file for the same numbers")


class AlternatingTimer:
    """A hook before each forward of the loop: after every block of its steps, a block of bare ones."""

    def __init__(self, bare: BareStep, block: int, rounds: int, device: torch.device) -> None:
        self.bare, self.block, self.rounds, self.device = bare, block, rounds, device
        self.calls, self.busy = 0, False
        self.loop: list[tuple[float, float]] = []
        self.plain: list[tuple[float, float]] = []
        self.began = self.now()

    def __call__(self, *unused: Any) -> None:
        if not self.bare.task.training or self.busy:  # a validation's forward, or our own
            return
        self.calls += 1
        done = self.calls - 1 - self.block  # the first block warms up
        if done < 0 or done % self.block:
            return
        if done:
            self.loop.append(self.since(self.began))
        if len(self.plain) < self.rounds:
            self.bare.step = self.calls  # the same terms of the loss
            self.busy, began = True, self.now()
            for _ in range(self.block):
                self.bare()
            self.plain.append(self.since(began))
            self.busy = False
        self.began = self.now()

    def now(self) -> tuple[float, float]:
        synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def since(self, began: tuple[float, float]) -> tuple[float, float]:
        """Seconds a step: on the wall, of all threads' processor time."""
        wall, processor = self.now()
        return (wall - began[0]) / self.block, (processor - began[1]) / self.block


def main(config: BenchTraining) -> None:
    """Measure, count, print."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, Path(folder))
    print(markdown_table(config, found))
    if config.out:
        Path(config.out).write_text(json.dumps({"config": asdict(config), **found}, indent=1))


def measure(config: BenchTraining, folder: Path) -> dict[str, Any]:
    """Everything in the table, as plain numbers."""
    steps = config.block * (config.rounds + 1) + 1
    arguments = [
        config.config, *config.change, "contact_share=0", "val_windows=64", f"loop.steps={2 * steps}", f"loop.stop_at_step={steps}",
        f"loop.log_every={config.block}", "loop.eval_every=0", "loop.gradient_accumulation=1", f"data={folder / 'data'}", f"run={folder / 'run'}",
    ]  # fmt: skip
    full = command_line.parse(TrainWorldModel, [str(each) for each in arguments])
    assert full is not None
    model = full.predictor
    write_random_slots(folder / "data", config.videos, model.slots, model.slot_dim)
    source = InMemoryWindows(
        full.data,
        "train",
        history_frames=model.history_frames,
        pred_frames=model.pred_frames,
        frameskip=full.frameskip,
        horizon=full.horizon,
    )
    full.loop.precision = native_precision()
    device = make_accelerator(full.loop.precision).device
    ids = np.arange(8 * full.loop.global_batch_size) % len(source)
    batches = [to_device(source.get_batch(part, part), device) for part in np.split(ids, 8)]
    bare = BareStep(full, batches, device)
    turns = AlternatingTimer(bare, config.block, config.rounds, device)
    torch.manual_seed(full.seed)
    task = WorldModelTask(full)
    task.register_forward_pre_hook(turns)
    train(task, source, source, full, val_ids=np.arange(64))
    restart, checkpoint = time_restart([str(each) for each in arguments], steps)
    pairs = list(zip(turns.loop, turns.plain))
    flop = step_flops(meta_copy(bare.task), batches[:1], 0, 0.5)
    count = sum(p.numel() for p in bare.task.parameters())
    step = StepCost(flop, 4 * count, statistics.median(plain[0] for plain in turns.plain))
    few = [
        each for each in map(str, arguments) if not each.startswith(("loop.stop_at_step=", "run="))
    ]
    sent = measure_comm_bytes(
        [*few, "optimizer.name=adamw", "loop.precision=fp32"], config.engines, folder / "traffic"
    )
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "batch": full.loop.global_batch_size,
        "step_seconds": step.seconds,
        "processor_seconds": statistics.median(plain[1] for plain in turns.plain),
        "threads": torch.get_num_threads(),
        "overhead": [
            statistics.median(loop[i] / plain[i] - 1 for loop, plain in pairs) for i in (0, 1)
        ],
        "overheads": [[loop[i] / plain[i] - 1 for loop, plain in pairs] for i in (0, 1)],
        "checkpoint_seconds": checkpoint,
        "restart_seconds": restart,
        "parameters": count,
        "flop": flop,
        "all_reduced_bytes": step.bytes,
        "traffic": sent,
        "scaling": scaling_table(step, config.gpus),
    }


def time_restart(arguments: list[str], steps: int) -> tuple[float, float]:
    """Seconds from a new process's start to its first step after the checkpoint of `steps`, and those of its checkpoint."""
    settings = [
        each
        for each in arguments
        if not each.startswith(("loop.stop_at_step=", "loop.log_every=", "loop.checkpoint_every="))
    ]
    stop = [
        f"loop.stop_at_step={steps + 2}",
        "loop.log_every=1",
        f"loop.checkpoint_every={steps + 1}",
    ]
    began, first, checkpoint = time.perf_counter(), 0.0, 0.0
    command = [sys.executable, "-m", "cjepa_dist.train_world_model", *settings, *stop]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train ") and not first:
                first = time.perf_counter() - began
            if "checkpoint_seconds" in line:
                checkpoint = float(line.split("checkpoint_seconds")[1].split()[0])
    if process.returncode or not first:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(command[1:])}")
    return first, checkpoint


def markdown_table(config: BenchTraining, found: dict[str, Any]) -> str:
    """Markdown."""
    wall, processor = (f"{100 * value:+.1f} %" for value in found["overhead"])
    spread, spent = (
        ", ".join(f"{100 * value:+.1f}" for value in pairs) for pairs in found["overheads"]
    )
    # One thread at work is enough to call the machine free: small steps do not fill more.
    busy = (
        found["device"].startswith("CPU")
        and found["processor_seconds"] < 0.8 * found["step_seconds"]
    )
    by = "processor time: this machine is busy, or the step waits" if busy else "wall time"
    met = "met" if found["overhead"][busy] < MAX_OVERHEAD else "NOT met"
    return "\n".join(
        [
            f"Training loop, {config.config}, batch {found['batch']}, {found['device']}, {config.rounds} pairs of {config.block} steps.",
            "",
            "| what | |",
            "|---|---|",
            f"| bare step | {1e3 * found['step_seconds']:.4g} ms, {1e3 * found['processor_seconds']:.4g} ms of processors |",
            f"| the loop beside it, wall (each pair: {spread}) | {wall} |",
            f"| the loop beside it, processor time, with the thread that reads data ({spent}) | {processor} |",
            f"| a checkpoint stalls for | {found['checkpoint_seconds']:.3g} s |",
            f"| new process to its first step after a checkpoint | {found['restart_seconds']:.3g} s |",
            f"| parameters, all-reduced a step under DDP | {found['parameters']:,}, {1e-6 * found['all_reduced_bytes']:.4g} MB |",
            f"| model FLOP a step | {1e-9 * found['flop']:.4g} G |",
            "",
            f"- overhead of the loop: aim below {MAX_OVERHEAD:.0%}, {met} by {by}",
            "",
            *([tell(found["traffic"], found["all_reduced_bytes"]), ""] if found["traffic"] else []),
            found["scaling"],
        ]
    )
