"""The training loop, and nothing else. It trains any task from any source on any number of processes.

    position ──> Feed ──> batch ──> task(batch, step) ──> loss ──> backward ──> update ──> next step
    every N steps: metrics, validation, checkpoint, replicas compared

How processes share the work (DDP, FSDP2, ZeRO) is the engine's business (engine.py).

The order of samples, masks, the dropout seed and the learning rate are functions of the step: a run resumed from a checkpoint is the run.
A signal to any rank ends it after a step with a checkpoint and exit code 75, "the same command goes on" (guard.py); a step whose loss or
gradient is not finite changes nothing (skip.py).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist import config as schema
from cjepa_dist import runtime
from cjepa_dist.data.order import window_ids
from cjepa_dist.errors import UserError
from cjepa_dist.tasks import Outcome, VqaTask, WorldModelTask
from cjepa_dist.training import checkpoint, faults, replicas
from cjepa_dist.training.engine import Engine, start
from cjepa_dist.training.feed import Feed, Source
from cjepa_dist.training.guard import OWN_FILES, Guard
from cjepa_dist.training.optimizer import learning_rate
from cjepa_dist.training.skip import Skips, spread
from cjepa_dist.training.telemetry import Telemetry, rewind

Config = schema.TrainWorldModel | schema.TrainAloe
Metrics = dict[str, tuple[Tensor, Tensor]]
Picture = Callable[[Telemetry, int, Any], None]
# Fields that may differ when a run goes on: they change what is written and when, not what is learned.
FREE = (
    "data", "run", "loop.processes", "loop.engine", "loop.compare_every", "loop.log_every", "loop.eval_every", "loop.checkpoint_every",
    "loop.checkpoint_minutes", "loop.keep", "loop.keep_best", "loop.stop_at", "loop.skip_budget", "loop.hang_minutes",
)  # fmt: skip


def train(
    task: WorldModelTask | VqaTask,
    source: Source,
    validation: Source,
    config: Config,
    *,
    val_ids: np.ndarray,
    picture: Picture | None = None,
) -> int:
    """Train to the end of the run, or go on where the newest good checkpoint left off. Returns the exit code: 0, or 75 after a signal.

    `val_ids` are the samples of `validation` that a validation reads, each once. `picture(telemetry, step, task)` draws after a validation.
    Raises UserError when the run folder belongs to another config or is in use, when the batch does not divide, when the engine or the
    number of processes is not what was asked for, when replicas differ, when more steps than loop.skip_budget had no finite loss (with a
    checkpoint of the last good state) and when the disk is full.
    """
    run = Path(config.run)
    engine = start(config)
    handle = engine.handle
    check_batch(config, handle.num_processes)
    check_run(run, config)
    with Guard(run, config.loop) as guard, full_disk_is_a_user_error(run):
        open_run(run, config, runtime.environment(handle, engine.name, config.loop.precision), first=handle.is_main_process)
        return fit(task, source, validation, config, guard, engine, val_ids, picture)


def fit(
    task: WorldModelTask | VqaTask,
    source: Source,
    validation: Source,
    config: Config,
    guard: Guard,
    engine: Engine,
    val_ids: np.ndarray,
    picture: Picture | None,
) -> int:
    """The loop itself, in an open run; arguments and result as of `train`."""
    loop, run, handle = config.loop, Path(config.run), engine.handle
    first = handle.is_main_process
    steps = total_steps(loop, len(source))
    meta = engine.open(task, partial(resume, run, first=first))
    start = meta["step"]
    stop = min(steps, loop.stop_at or steps)
    if start >= steps:
        if first:
            write_json(run / "done.json", {"step": steps})  # killed between its last checkpoint and this
        print(f"run {run} is complete at step {start}: nothing to do", flush=True)
        return 0
    engine.wrap()
    if first:
        print(engine.describe(), flush=True)
    telemetry = Telemetry(run, config, active=first, start=start, steps=steps)
    skips, best = Skips(run, count=meta.get("skipped", 0), first=first), meta.get("best") if loop.keep_best else None
    feed = Feed(
        source, seed=config.seed, start=start, stop=stop, global_batch=loop.global_batch, accumulation=loop.accumulation,
        rank=handle.process_index, world=handle.num_processes, device=handle.device,
    )  # fmt: skip
    since, began, waited, seen, signal, done = Sums(), time.perf_counter(), 0.0, start, 0, start
    for step, batches in feed:
        faults.strike(step, batches)
        rate = learning_rate(step, steps, config.optimizer)
        for part in engine.optimizers:
            for group in part.param_groups:
                group["lr"] = rate
        statistics, metrics, total = None, Sums(), torch.zeros((), device=handle.device)
        with engine.autocast():
            torch.manual_seed(runtime.mix(config.seed, step, handle.process_index))
            survey = engine.survey(batches, step, step / steps)
        for index, batch in enumerate(batches):
            with engine.sync(last=index + 1 == len(batches)), engine.autocast():
                torch.manual_seed(runtime.mix(config.seed, step, handle.process_index, *([index] if index else [])))
                outcome: Outcome = engine.model(batch, step, step / steps, survey)
                loss = spread(outcome.loss) / len(batches)
                engine.backward(loss)
            total += loss.detach()
            metrics.add(outcome.metrics)
            if outcome.statistics is not None:
                statistics = outcome.statistics if statistics is None else statistics + outcome.statistics
        norm, good = engine.update(statistics, step)
        metrics.add({"gradient_norm": (norm, torch.ones_like(norm))})
        done = step + 1
        skips.add(done, good, total)
        since.add(metrics.where(good))

        faults.strike_replica(done, engine.replicas())
        if loop.compare_every and done % loop.compare_every == 0:
            replicas.compare(engine.replicas(), done)
        signal, clock = guard.agreed()
        log = done % loop.log_every == 0 or done == stop
        save = done % loop.checkpoint_every == 0 or done == stop or signal or clock
        new = skips.read(partial(batch_names, config, source)) if log or save else 0
        spent = new and skips.count > loop.skip_budget
        if log:
            values = since.read()
            now = time.perf_counter()
            values["learning_rate"] = rate
            values["samples_per_second"] = (done - seen) * loop.global_batch / (now - began)
            values["data_wait_share"] = (feed.waited - waited) / (now - began)
            if skips.count:
                values["skipped_steps"] = skips.count
            telemetry.write(done, values)
            began, waited, seen = now, feed.waited, done
        if (loop.eval_every and done % loop.eval_every == 0) or done == steps:
            with engine.measured() as measured:
                values = validate(measured, validation, val_ids, engine, loop.global_batch)
                telemetry.write(done, values, kind="val")
                if picture is not None and first:
                    picture(telemetry, done, measured)
            if loop.keep_best and values["loss"] < (best["loss"] if best else math.inf):
                best, save = {"step": done, "loss": values["loss"]}, True
            guard.alive()
            began = time.perf_counter()  # a validation is no training time
            waited, seen = feed.waited, done
        if save or spent:
            meta = {"position": done * loop.global_batch, "processes": handle.num_processes, "skipped": skips.count, "best": best}
            engine.save(run / "checkpoints", step=done, meta=meta, keep=loop.keep)
            guard.alive()
        if spent:
            telemetry.close()
            raise UserError(
                f"{skips.count} steps up to {done} of {run} had a loss or gradient that is not finite, more than "
                f"loop.skip_budget={loop.skip_budget}: {skips.path} names their samples; mend these, or lower optimizer.lr in a new run"
            )
        if signal:
            break
    telemetry.close()
    if done == steps and first:
        write_json(run / "done.json", {"step": steps})
    handle.wait_for_everyone()
    handle.end_training()
    return guard.leave(signal, done) if signal and done < steps else 0


def total_steps(loop: schema.LoopConfig, samples: int) -> int:
    """Steps of a whole run over a split of `samples`."""
    return loop.steps or math.ceil(loop.epochs * samples / loop.global_batch)


def batch_names(config: Config, source: Source, step: int) -> list[str]:
    """(global batch,): all samples of a step, by names that a user can look up."""
    return source.names(window_ids(config.seed, step * config.loop.global_batch, config.loop.global_batch, len(source)))


class Sums:
    """Running (sum, count) of each metric, on the device until read."""

    def __init__(self) -> None:
        self.values: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        for name, (total, count) in metrics.items():
            old = self.values.get(name)
            self.values[name] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def where(self, good: Tensor) -> Metrics:
        """What was added; unless `good`, nothing, or on a GPU zeros, and so no samples."""
        if good.is_cpu:
            return self.values if good else {}
        return {name: (torch.where(good, total, 0), torch.where(good, count, 0)) for name, (total, count) in self.values.items()}

    def read(self) -> dict[str, float]:
        """Means over everything since the last read, over all ranks; a metric without samples is left out."""
        if not self.values:
            return {}
        names = sorted(self.values)
        table = runtime.all_reduce(torch.stack([torch.stack([v.float() for v in self.values[name]]) for name in names])).cpu()
        self.values = {}
        return {name: (total / count).item() for name, (total, count) in zip(names, table) if count > 0}


@torch.no_grad()
def validate(task: Any, source: Source, ids: np.ndarray, engine: Engine, batch: int) -> dict[str, float]:
    """Metrics over `ids`, each counted once: ranks take interleaved shares, uneven ones included, and no forward waits for another rank."""
    task.eval()
    handle = engine.handle
    mine, sums = ids[handle.process_index :: handle.num_processes], Sums()
    share = max(1, batch // handle.num_processes)
    for begin in range(0, len(mine), share):
        part = mine[begin : begin + share]
        content = source.gather(part, part.astype(np.int64))
        totals = {f"total_{name}": torch.tensor(value) for name, value in source.totals(part).items()}
        content = {name: value.to(handle.device) for name, value in {**content, **totals}.items()}
        with engine.autocast():
            outcome = task(content, 0)
        sums.add(outcome.metrics)
    task.train()
    means = sums.read()
    return {**means, "loss": task.combine(means)}


def resume(run: Path, load: Callable[[Path], dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """`load` the newest good checkpoint, if any; returns its meta data, of which "step" is the number of finished steps."""
    folder = run / "checkpoints"
    path, meta = checkpoint.newest(folder), dict[str, Any](step=0)
    if path is not None:
        meta = load(path)
        print(f"resumed from {path}", flush=True)
        if (best := meta.get("best")) and not (folder / f"step_{best['step']:08d}").exists():
            meta["best"] = None  # a later one, now damaged, had taken its place
    if first:
        for rest in folder.glob("*.partial"):  # of a process killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        rewind(run / "skipped.jsonl", meta["step"])
    return meta


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


def check_run(run: Path, config: Config) -> None:
    """Raises UserError where `run` is no folder for this config, naming the field that differs."""
    if (run / "config.yaml").exists():
        old, new = checkpoint.read_config(run), config
        if type(old) is not type(new):
            raise UserError(f"{run} holds a run of another kind ({type(old).__name__}): choose another run folder")
        for key, _ in schema.walk(type(config)):
            if key not in FREE and (was := read(old, key)) != (now := read(new, key)):
                raise UserError(f"{run} was started with {key}={was}, not {now}: choose another run folder or remove this one")
    elif run.exists() and any(path.name not in OWN_FILES for path in run.iterdir()):
        raise UserError(f"{run} is not empty and no run folder (no config.yaml): choose another")


def open_run(run: Path, config: Config, environment: dict[str, Any], *, first: bool) -> None:
    """Make the run folder and write what the run is; `check_run` has seen it."""
    if first:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "environment.json", environment)
        schema.save(config, temporary := run / "config.yaml.partial")
        os.replace(temporary, run / "config.yaml")
    checkpoint.barrier()


@contextmanager
def full_disk_is_a_user_error(run: Path) -> Iterator[None]:
    """Also where it is not a checkpoint that finds no room, but a line of metrics."""
    try:
        yield
    except OSError as error:
        if error.errno not in checkpoint.NO_ROOM:
            raise
        raise UserError(f"{error.strerror} while writing to {run}: make room and run the same command again") from error


def read(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)
