"""The training loop, and nothing else. It trains any task from any source on any number of processes.

    position ──> Feed ──> batch ──> task(batch, step) ──> loss ──> backward ──> update ──> next step
    every N steps: metrics, validation, checkpoint

The order of samples, masks, the dropout seed and the learning rate are functions of the step: a run resumed from a checkpoint is the run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist import config as schema
from cjepa_dist import runtime
from cjepa_dist.errors import UserError
from cjepa_dist.tasks import Outcome, VqaTask, WorldModelTask
from cjepa_dist.training import checkpoint
from cjepa_dist.training.feed import Feed, Source
from cjepa_dist.training.optimizer import learning_rate, optimizers
from cjepa_dist.training.telemetry import Telemetry

Config = schema.TrainWorldModel | schema.TrainAloe
Metrics = dict[str, tuple[Tensor, Tensor]]
# Fields that may differ when a run goes on: they change what is written and when, not what is learned.
FREE = ("data", "run", "loop.processes", "loop.log_every", "loop.eval_every", "loop.checkpoint_every", "loop.keep", "loop.stop_at")


def train(
    task: WorldModelTask | VqaTask,
    source: Source,
    validation: Source,
    config: Config,
    *,
    val_ids: np.ndarray,
    picture: Callable[[Telemetry, int], None] | None = None,
) -> int:
    """Train to the end of the run, or go on where the newest good checkpoint left off. Returns the exit code.

    `val_ids` are the samples of `validation` that a validation reads, each once. `picture(telemetry, step)` draws after a validation.
    Raises UserError when the run folder belongs to another config or the batch does not divide.
    """
    loop, run = config.loop, Path(config.run)
    handle = runtime.accelerator(loop.precision, loop.processes)
    check_batch(config, handle.num_processes)
    steps = loop.steps or math.ceil(loop.epochs * len(source) / loop.global_batch)
    open_run(run, config, runtime.environment(handle), first=handle.is_main_process)

    optimizer = optimizers(task.to(handle.device), config.optimizer)
    start = resume(run, task, optimizer)
    stop = min(steps, loop.stop_at or steps)
    if start >= steps:
        print(f"run {run} is complete at step {start}: nothing to do", flush=True)
        return 0
    model = handle.prepare_model(task)
    telemetry = Telemetry(run, config, active=handle.is_main_process, start=start, steps=steps)
    feed = Feed(
        source, seed=config.seed, start=start, stop=stop, global_batch=loop.global_batch, accumulation=loop.accumulation,
        rank=handle.process_index, world=handle.num_processes, device=handle.device,
    )  # fmt: skip
    since, began, waited, seen = Sums(), time.perf_counter(), 0.0, start
    for step, batches in feed:
        rate = learning_rate(step, steps, config.optimizer)
        for part in optimizer:
            for group in part.param_groups:
                group["lr"] = rate
        statistics = None
        with handle.autocast():
            torch.manual_seed(runtime.mix(config.seed, step, handle.process_index))
            survey = task.survey(batches, step, step / steps)
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            with nullcontext() if last else handle.no_sync(model), handle.autocast():
                torch.manual_seed(runtime.mix(config.seed, step, handle.process_index, *([index] if index else [])))
                outcome: Outcome = model(batch, step, step / steps, survey)
                (outcome.loss / len(batches)).backward()
            since.add(outcome.metrics)
            if outcome.statistics is not None:
                statistics = outcome.statistics if statistics is None else statistics + outcome.statistics
        norm = torch.nn.utils.clip_grad_norm_(task.parameters(), config.optimizer.clip or math.inf, foreach=True)
        since.add({"gradient_norm": (norm, torch.ones_like(norm))})
        for part in optimizer:
            part.step()
            part.zero_grad(set_to_none=True)
        if statistics is not None:
            task.update(runtime.all_reduce(statistics))  # type: ignore[operator]

        done = step + 1
        if done % loop.log_every == 0 or done == stop:
            values = since.read()
            now = time.perf_counter()
            values["learning_rate"] = rate
            values["samples_per_second"] = (done - seen) * loop.global_batch / (now - began)
            values["data_wait_share"] = (feed.waited - waited) / (now - began)
            if not math.isfinite(values["loss"]):
                raise UserError(
                    f"loss {values['loss']} within the {done - seen} steps up to {done} of {run}: lower the learning rate or check the data"
                )
            telemetry.write(done, values)
            began, waited, seen = now, feed.waited, done
        if (loop.eval_every and done % loop.eval_every == 0) or done == steps:
            telemetry.write(done, validate(task, validation, val_ids, handle, loop.global_batch), kind="val")
            if picture is not None and handle.is_main_process:
                picture(telemetry, done)
            began = time.perf_counter()  # a validation is no training time
            waited, seen = feed.waited, done
        if done % loop.checkpoint_every == 0 or done == stop:
            meta = {"position": done * loop.global_batch, "processes": handle.num_processes}
            checkpoint.save(run / "checkpoints", task, optimizer, step=done, meta=meta, keep=loop.keep)
    if stop == steps and handle.is_main_process:
        write_json(run / "done.json", {"step": steps})
    telemetry.close()
    handle.wait_for_everyone()
    handle.end_training()
    return 0


class Sums:
    """Running (sum, count) of each metric, on the device until read."""

    def __init__(self) -> None:
        self.values: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        for name, (total, count) in metrics.items():
            old = self.values.get(name)
            self.values[name] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def read(self) -> dict[str, float]:
        """Means over everything since the last read, over all ranks; a metric without samples is left out."""
        if not self.values:
            return {}
        names = sorted(self.values)
        table = runtime.all_reduce(torch.stack([torch.stack([v.float() for v in self.values[name]]) for name in names])).cpu()
        self.values = {}
        return {name: (total / count).item() for name, (total, count) in zip(names, table) if count > 0}


@torch.no_grad()
def validate(task: WorldModelTask | VqaTask, source: Source, ids: np.ndarray, handle: Any, batch: int) -> dict[str, float]:
    """Metrics over `ids`, each counted once: ranks take interleaved shares, uneven ones included, and no forward waits for another rank."""
    task.eval()
    mine, sums = ids[handle.process_index :: handle.num_processes], Sums()
    share = max(1, batch // handle.num_processes)
    for begin in range(0, len(mine), share):
        part = mine[begin : begin + share]
        content = source.gather(part, part.astype(np.int64))
        totals = {f"total_{name}": torch.tensor(value) for name, value in source.totals(part).items()}
        content = {name: value.to(handle.device) for name, value in {**content, **totals}.items()}
        with handle.autocast():
            outcome = task(content, 0)
        sums.add(outcome.metrics)
    task.train()
    means = sums.read()
    return {**means, "loss": task.combine(means)}


def resume(run: Path, task: torch.nn.Module, optimizer: list[torch.optim.Optimizer]) -> int:
    """Load the newest good checkpoint, if any; returns the number of finished steps."""
    path = checkpoint.newest(run / "checkpoints")
    if path is None:
        return 0
    step = checkpoint.load(path, task, optimizer)["step"]
    print(f"resumed from {path}", flush=True)
    return step


def check_batch(config: Config, world: int) -> None:
    loop = config.loop
    parts = world * loop.accumulation
    if loop.global_batch % parts:
        raise UserError(
            f"loop.global_batch={loop.global_batch} is not divisible by {world} processes x loop.accumulation={loop.accumulation}"
        )
    if isinstance(config, schema.TrainWorldModel) and (fraction := config.ctt.fraction) < 1:
        share = fraction * loop.global_batch / parts
        if share < 1 or abs(share - round(share)) > 1e-6:
            raise UserError(
                f"ctt.fraction={fraction} of the {loop.global_batch // parts} windows of a pass is {share:g}: take a fraction that gives a "
                "whole number, so that the windows chosen do not depend on the number of processes"
            )


def open_run(run: Path, config: Config, environment: dict[str, Any], *, first: bool) -> None:
    """Create the run folder, or check that it belongs to this config. Raises UserError naming the field that differs."""
    path = run / "config.yaml"
    if path.exists():
        old, new = checkpoint.read_config(run), config
        if type(old) is not type(new):
            raise UserError(f"{run} holds a run of another kind ({type(old).__name__}): choose another run folder")
        for key, _ in schema.walk(type(config)):
            if key not in FREE and (was := read(old, key)) != (now := read(new, key)):
                raise UserError(f"{run} was started with {key}={was}, not {now}: choose another run folder or remove this one")
    elif run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and no run folder (no config.yaml): choose another")
    checkpoint.barrier()
    if first:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "environment.json", environment)
        schema.save(config, temporary := run / "config.yaml.partial")
        os.replace(temporary, path)
    checkpoint.barrier()


def read(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)
