"""The training loop, and nothing else. It trains any task from any source on any number of processes.

    position ──> Feed ──> batch ──> task(batch, step) ──> loss ──> backward ──> update ──> next step
    every N steps: metrics, validation, checkpoint, replicas compared

How processes share the work (DDP, FSDP2, ZeRO) is the engine's business (engine.py).

The order of samples, masks, the dropout seed and the learning rate are functions of the step: a run resumed from a checkpoint is the run.
A signal to any rank ends it after a step with a checkpoint and exit code 75, "the same command goes on" (resilience/preemption.py); a step whose loss or
gradient is not finite changes nothing (skip.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.checkpoint.resume import resume
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import schema
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Dataset
from cjepa_dist.engines.base import Engine
from cjepa_dist.engines.build import build_engine, resolve_precision
from cjepa_dist.errors import UserError
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience import fault_injection, replica_check
from cjepa_dist.resilience.disk_full import disk_full_as_user_error, on_main_process
from cjepa_dist.resilience.preemption import Preemption
from cjepa_dist.resilience.skipped_steps import SkippedSteps
from cjepa_dist.resilience.watchdog import Watchdog
from cjepa_dist.runtime.collectives import CpuGroups
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.cuda_graph import build_train_step
from cjepa_dist.training.data_loader import PrefetchingLoader, check_batch_divides
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.profiler import Profiler
from cjepa_dist.training.provenance import describe_environment
from cjepa_dist.training.run_dir import check_run_dir, lock_run_dir, open_run_dir
from cjepa_dist.training.throughput import ThroughputMeter
from cjepa_dist.training.validation import validate

Picture = Callable[[RunLogger, int, Any], None]


def train(
    task: WorldModelTask | VqaTask,
    source: Dataset,
    validation: Dataset,
    config: TrainConfig,
    *,
    val_ids: np.ndarray,
    picture: Picture | None = None,
) -> int:
    """Train to the end of the run, or go on where the newest good checkpoint left off. Returns the exit code: 0, or 75 after a signal.

    `val_ids` are the samples of `validation` that a validation reads, each once. `picture(telemetry, step, task)` draws after a validation.
    Raises UserError when the run folder belongs to another config or is in use, when the batch does not divide, when the engine or the
    number of processes is not what was asked for, when replicas differ, when more steps than loop.max_skipped_steps had no finite loss (with a
    checkpoint of the last good state) and when the disk is full.
    """
    run = Path(config.run)
    resolve_precision(run, config)
    engine = build_engine(config)
    handle = engine.handle
    check_batch_divides(config, handle.num_processes)
    check_run_dir(run, config)
    groups = CpuGroups()
    with (
        lock_run_dir(run, groups.control),
        Preemption(run, config.loop.checkpoint_every_minutes, groups.control) as preemption,
        Watchdog(run, config.loop.hang_timeout_minutes) as watchdog,
        disk_full_as_user_error(run),
    ):
        about = describe_environment(handle, engine.name, config.loop.precision)
        open_run_dir(run, config, about, groups.control)
        background = config.loop.async_checkpoints
        with CheckpointWriter(
            run / "checkpoints",
            keep=config.loop.keep_checkpoints,
            background=background,
            group=groups.checkpoint,
        ) as writer:
            return fit(
                task, source, validation, config, groups, preemption, watchdog, engine, writer,
                val_ids, picture,
            )  # fmt: skip


def fit(
    task: WorldModelTask | VqaTask,
    source: Dataset,
    validation: Dataset,
    config: TrainConfig,
    groups: CpuGroups,
    preemption: Preemption,
    watchdog: Watchdog,
    engine: Engine,
    writer: CheckpointWriter,
    val_ids: np.ndarray,
    picture: Picture | None,
) -> int:
    """The loop itself, in an open run; arguments and result as of `train`."""
    loop, run, handle = config.loop, Path(config.run), engine.handle
    first = handle.is_main_process
    steps = total_steps(loop, len(source))
    meter = ThroughputMeter(task, loop, handle.device, steps=steps)
    meta = engine.open(task, partial(resume, run))
    start = meta["step"]
    stop = min(steps, loop.stop_at_step or steps)
    if start >= steps:
        if first:
            write_json(
                run / "done.json", {"step": steps}
            )  # killed between its last checkpoint and this
        print(f"run {run} is complete at step {start}: nothing to do", flush=True)
        return 0
    engine.wrap()
    if first:
        print(engine.describe(), flush=True)
    telemetry = RunLogger(run, config, start=start, steps=steps, group=groups.control)
    skips, best = (
        SkippedSteps(run, count=meta.get("skipped", 0)),
        meta.get("best") if loop.keep_best else None,
    )
    feed = PrefetchingLoader(
        source, seed=config.seed, start=start, stop=stop, global_batch_size=loop.global_batch_size, accumulation=loop.gradient_accumulation,
        rank=handle.process_index, world=handle.num_processes, device=handle.device,
    )  # fmt: skip
    profiler = Profiler(run, loop, start=start, stop=stop)
    take = build_train_step(engine, config, start=start, steps=steps)
    signal, done = 0, start
    meter.restart(start, 0.0)
    for step, batches in feed:
        fault_injection.inject_before_step(step, batches)
        loss, good = take(batches, step)
        done = step + 1
        skips.add(done, good, loss)
        telemetry.advance(done)
        profiler.step(done)

        fault_injection.inject_replica_fault(done, engine.replicas)
        if loop.replica_check_every and done % loop.replica_check_every == 0:
            replica_check.compare_replicas(engine.replicas(), done)
        signal = preemption.agreed()
        watchdog.beat()
        log = done % loop.log_every == 0 or done == stop
        save = done % loop.checkpoint_every == 0 or done == stop or signal or preemption.checkpoint_due
        new = skips.read(partial(batch_names, config, source)) if log or save else 0
        spent = new and skips.count > loop.max_skipped_steps
        if log:
            values = {
                **take.read(),
                "learning_rate": learning_rate(step, steps, config.optimizer),
                "parameter_norm": engine.parameter_norm(),
            }
            values |= meter.read(done, feed.waited, batches) | feed.read_statistics()
            if skips.count:
                values["skipped_steps"] = skips.count
            telemetry.log(done, values)
        if (loop.eval_every and done % loop.eval_every == 0) or done == steps:
            with engine.measured() as measured:
                values = validate(measured, validation, val_ids, engine, loop.global_batch_size)
                if picture is not None and first:
                    picture(telemetry, done, measured)
                telemetry.log(done, values, kind="val")
            if loop.keep_best and values["loss"] < (best["loss"] if best else math.inf):
                best, save = {"step": done, "loss": values["loss"]}, True
            watchdog.beat()
            meter.restart(done, feed.waited)  # a validation is no training time
        if save or spent:
            meta = {
                "position": done * loop.global_batch_size,
                "processes": handle.num_processes,
                "skipped": skips.count,
                "best": best,
                "steps": steps,
            }
            with meter.saving():
                engine.save(writer, step=done, meta=meta)
            watchdog.beat()
        if spent:
            telemetry.close()
            raise UserError(
                f"{skips.count} steps up to {done} of {run} had a loss or gradient that is not finite, more than "
                f"loop.max_skipped_steps={loop.max_skipped_steps}: {skips.path} names their samples; mend these, or lower optimizer.lr in a new run"
            )
        if signal:
            break
    profiler.close()
    telemetry.close()
    writer.wait()
    if (read := feed.describe()) and first:
        print(read, flush=True)
    if done == steps:
        on_main_process(
            run, lambda: write_json(run / "done.json", {"step": steps}), groups.control
        )
    handle.wait_for_everyone()
    handle.end_training()
    return preemption.exit_code(signal, done) if signal and done < steps else 0


def total_steps(loop: schema.LoopConfig, samples: int) -> int:
    """Steps of a whole run over a split of `samples`."""
    return loop.steps or math.ceil(loop.epochs * samples / loop.global_batch_size)


def batch_names(config: TrainConfig, source: Dataset, step: int) -> list[str]:
    """(global batch,): all samples of a step, by names that a user can look up."""
    return source.sample_names(
        source.sample_ids(
            config.seed, step * config.loop.global_batch_size, config.loop.global_batch_size
        )
    )
