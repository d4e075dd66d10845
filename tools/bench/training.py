"""What the training loop costs beside the step itself, and what more processes would add.

    python -m tools.bench training [CONFIG.yaml] key=value ...

    one process, alternately: a block of steps of the loop | a block of bare steps | ...
                              ──> ratio of each pair ──> median
    then: the time of its checkpoints; a new process until its first step after the checkpoint
    then: the bytes that two real processes send a step, under each engine
    then counted, not measured: FLOP, bytes all-reduced ──> a model of the step on N H100s

A bare step is the same task and optimizer on batches in memory (bare_step.py). The blocks alternate
within one run, so that other work on the machine affects both alike; on a busy machine, trust the
ratio of processor times.
"""

from __future__ import annotations

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
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.device import make_accelerator, native_precision
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.flops import meta_copy, step_flops
from cjepa_dist.training.loop import train
from cjepa_dist.training.run import Validation
from tools.bench.bare_step import BareStep
from tools.bench.comm_bytes import comm_bytes_table, measure_comm_bytes
from tools.bench.harness import synchronize
from tools.bench.random_data import write_random_slots
from tools.bench.scaling import StepCost, scaling_table

MAX_OVERHEAD = 0.03
Times = tuple[float, float]  # seconds on the wall, and of all threads' processor time


@dataclass
class BenchTraining:
    """Overhead of the training loop, checkpoints and restart, on random slots."""

    config: str = option(
        "configs/world_model/quickstart.yaml",
        "config of train_world_model; contact_share is left out",
        path=True,
    )
    overrides: list[str] = option([], "key=value pairs over the config")
    block: int = option(
        50, "steps of a block; a line of metrics is written once in it", unit="steps", least=1
    )
    rounds: int = option(6, "pairs of blocks; medians are shown", least=1)
    videos: int = option(40, "videos of random slots", unit="videos", least=1)
    gpus: list[int] = option(
        [1, 8, 16, 64],
        "numbers of H100s in the model of the step; 8 a machine",
        least=1,
    )
    engines: list[str] = option(
        ["ddp", "fsdp2", "zero1", "zero2", "zero3"],
        "engines whose communication is measured, on CPUs; [] = none",
    )
    out: str = option("", "JSON file for the same numbers", path=True)


class AlternatingTimer:
    """A hook before each forward pass of the loop: runs a block of bare steps after every block."""

    def __init__(self, bare: BareStep, block: int, rounds: int, device: torch.device) -> None:
        self.bare, self.block, self.rounds, self.device = bare, block, rounds, device
        self.calls, self.in_bare_steps = 0, False
        self.loop_times: list[Times] = []  # of a step, one pair a block
        self.bare_times: list[Times] = []
        self.began = self.now()

    def __call__(self, *unused: Any) -> None:
        if not self.bare.task.training or self.in_bare_steps:  # a validation, or a bare step
            return
        self.calls += 1
        done = self.calls - 1 - self.block  # the first block warms up
        if done < 0 or done % self.block:
            return
        if done:
            self.loop_times.append(self.since(self.began))
        if len(self.bare_times) < self.rounds:
            self.bare.step = self.calls  # the same terms of the loss count
            self.in_bare_steps, began = True, self.now()
            for _ in range(self.block):
                self.bare()
            self.bare_times.append(self.since(began))
            self.in_bare_steps = False
        self.began = self.now()

    def now(self) -> Times:
        synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def since(self, began: Times) -> Times:
        """Times of a step, a mean over a block that began then."""
        wall, processor = self.now()
        return (wall - began[0]) / self.block, (processor - began[1]) / self.block


def main(config: BenchTraining) -> None:
    """Measure, count, print."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, Path(folder))
    print(markdown_table(config, found))
    if config.out:
        write_json(Path(config.out), {"config": asdict(config), **found})


def measure(config: BenchTraining, folder: Path) -> dict[str, Any]:
    """Everything in the table, as plain numbers."""
    steps = config.block * (config.rounds + 1) + 1
    shared = [
        config.config,
        *config.overrides,
        "contact_share=0",
        "val_windows=64",
        f"loop.steps={2 * steps}",
        "loop.eval_every=0",
        "loop.gradient_accumulation=1",
        f"data={folder / 'data'}",
    ]
    run = f"run={folder / 'run'}"
    stop = [f"loop.log_every={config.block}", f"loop.stop_at_step={steps}"]
    train_config = command_line.parse(TrainWorldModel, [*shared, run, *stop])
    assert train_config is not None
    timer, flop = time_loop(config, train_config, folder / "data")
    restart, checkpoint = time_restart([*shared, run], steps)
    comm_bytes = measure_comm_bytes(
        [*shared, "optimizer.name=adamw", "loop.precision=fp32"], config.engines, folder / "comm"
    )
    pairs = list(zip(timer.loop_times, timer.bare_times))
    overheads = [[loop[i] / bare[i] - 1 for loop, bare in pairs] for i in (0, 1)]
    wall, processor = (statistics.median(bare[i] for bare in timer.bare_times) for i in (0, 1))
    count = sum(p.numel() for p in timer.bare.task.parameters())
    step = StepCost(flop, 4 * count)
    threads = f"CPU, {torch.get_num_threads()} threads"
    is_cuda = timer.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(timer.device) if is_cuda else threads,
        "batch": train_config.loop.global_batch_size,
        "step_seconds": wall,
        "processor_seconds": processor,
        "threads": torch.get_num_threads(),
        "overhead": [statistics.median(values) for values in overheads],
        "overheads": overheads,
        "checkpoint_seconds": checkpoint,
        "restart_seconds": restart,
        "parameters": count,
        "flop": flop,
        "all_reduced_bytes": step.bytes,
        "comm_bytes": comm_bytes,
        "scaling": scaling_table(step, config.gpus),
    }


def time_loop(
    config: BenchTraining, train_config: TrainWorldModel, data: Path
) -> tuple[AlternatingTimer, int]:
    """Train on random slots in this process; the timer with its times, and the FLOP of a step."""
    model = train_config.predictor
    write_random_slots(data, config.videos, model.slots, model.slot_dim)
    source = InMemoryWindows(
        train_config.data,
        "train",
        WindowSpec(
            history_frames=model.history_frames,
            pred_frames=model.pred_frames,
            frameskip=train_config.frameskip,
            horizon=train_config.horizon,
        ),
    )
    precision = train_config.loop.precision = native_precision()
    device = make_accelerator(precision).device
    ids = np.arange(8 * train_config.loop.global_batch_size) % len(source)
    batches = [to_device(source.get_batch(part, part), device) for part in np.split(ids, 8)]
    bare = BareStep(train_config, batches, precision=precision)
    timer = AlternatingTimer(bare, config.block, config.rounds, device)
    torch.manual_seed(train_config.seed)
    task = WorldModelTask(train_config)
    task.register_forward_pre_hook(timer)
    train(task, source, Validation(source, np.arange(64)), train_config)
    flop = step_flops(meta_copy(bare.task), batches[:1], 0, bare.task.term_weights(0.5))
    return timer, flop


def time_restart(arguments: list[str], steps: int) -> Times:
    """(seconds until a new process's first step after the checkpoint of `steps`, of a checkpoint).

    The arguments are without loop.stop_at_step, loop.log_every and loop.checkpoint_every.
    """
    command = [
        sys.executable,
        "-m",
        "cjepa_dist.train_world_model",
        *arguments,
        f"loop.stop_at_step={steps + 2}",
        "loop.log_every=1",
        f"loop.checkpoint_every={steps + 1}",
    ]
    began, first, checkpoint = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train ") and not first:
                first = time.perf_counter() - began
            if "checkpoint_seconds" in line:
                checkpoint = float(line.split("checkpoint_seconds")[1].split()[0])
    if process.returncode or not first:
        raise UserError(f"exit code {process.returncode}: python {' '.join(command[1:])}")
    return first, checkpoint


def markdown_table(config: BenchTraining, found: dict[str, Any]) -> str:
    """What was measured, then what was counted."""
    wall, processor = (f"{100 * value:+.1f} %" for value in found["overhead"])
    wall_pairs, processor_pairs = (
        ", ".join(f"{100 * value:+.1f}" for value in pairs) for pairs in found["overheads"]
    )
    seconds, processor_seconds = found["step_seconds"], found["processor_seconds"]
    # One thread at work is enough to call the machine free: small steps do not fill more.
    busy = found["device"].startswith("CPU") and processor_seconds < 0.8 * seconds
    by = "processor time: this machine is busy, or the step waits" if busy else "wall time"
    met = "met" if found["overhead"][busy] < MAX_OVERHEAD else "NOT met"
    rows = {
        "bare step": f"{1e3 * seconds:.4g} ms, {1e3 * processor_seconds:.4g} ms of processors",
        f"the loop beside it, wall (each pair: {wall_pairs})": wall,
        f"the loop beside it, processor time, with the data thread ({processor_pairs})": processor,
        "training waits for a checkpoint": f"{found['checkpoint_seconds']:.3g} s",
        "new process to its first step after a checkpoint": f"{found['restart_seconds']:.3g} s",
        "parameters": f"{found['parameters']:,}",
        "all-reduced a step under DDP": f"{1e-6 * found['all_reduced_bytes']:.4g} MB",
        "model FLOP a step": f"{1e-9 * found['flop']:.4g} G",
    }
    lines = [
        f"Training loop, {config.config}, batch {found['batch']}, {found['device']}, "
        f"{config.rounds} pairs of {config.block} steps.",
        "",
        "| what | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"- overhead of the loop: target below {MAX_OVERHEAD:.0%}, {met} by {by}",
        "",
    ]
    if found["comm_bytes"]:
        lines += [comm_bytes_table(found["comm_bytes"], found["all_reduced_bytes"]), ""]
    return "\n".join([*lines, found["scaling"]])
