"""What a training run needs, as one object, and what it does beside its steps.

open_run(config) ──> Run: engine, lock on the run directory, preemption, watchdog, checkpoints
run.start(task, train_set, ...) ──> newest checkpoint loaded; data loader, train step, logger
run.log, run.validate, run.save      what the loop calls when they are due
run.finish(stop) ──> exit code
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from cjepa_dist.checkpoint.integrity import Choice
from cjepa_dist.checkpoint.resume import LAST_CHECKPOINT, choose_resume_point, resume
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config.parallel import check_batch_divides
from cjepa_dist.config.schema import LoopConfig, TrainConfig, TrainWorldModel
from cjepa_dist.data.dataset import Batch, Dataset
from cjepa_dist.engines.base import Engine
from cjepa_dist.engines.build import build_engine, resolve_precision
from cjepa_dist.errors import UserError
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience.disk_full import disk_full_as_user_error, on_main_process
from cjepa_dist.resilience.fault_injection import with_faults
from cjepa_dist.resilience.preemption import Preemption
from cjepa_dist.resilience.replica_check import compare_replicas
from cjepa_dist.resilience.skipped_steps import SkippedSteps
from cjepa_dist.resilience.watchdog import Watchdog
from cjepa_dist.runtime.collectives import CpuGroups, is_main
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.build import Task
from cjepa_dist.tasks.residuals import is_due as residuals_are_due
from cjepa_dist.tasks.residuals import measure_residuals
from cjepa_dist.training.cuda_graph import build_train_step
from cjepa_dist.training.data_loader import PrefetchingLoader
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.profiler import Profiler
from cjepa_dist.training.provenance import describe_environment
from cjepa_dist.training.run_data import RunData
from cjepa_dist.training.run_dir import check_run_dir, lock_run_dir, open_run_dir
from cjepa_dist.training.throughput import ThroughputMeter
from cjepa_dist.training.train_step import StepResult
from cjepa_dist.training.validation import validate

DrawImages = Callable[[RunLogger, int, Any], None]


@dataclass(frozen=True)
class Validation:
    """What a validation reads: the samples `ids` of `dataset`, each once; `draw` adds images."""

    dataset: Dataset
    ids: np.ndarray
    draw: DrawImages | None = None


@dataclass(frozen=True)
class Due:
    """What is due after a number of finished steps; `last` is the last step of this start."""

    loop: LoopConfig
    steps: int
    last: int

    def compare(self, done: int) -> bool:
        return every(self.loop.replica_check_every, done)

    def log(self, done: int) -> bool:
        return every(self.loop.log_every, done) or done == self.last

    def validate(self, done: int) -> bool:
        return every(self.loop.eval_every, done) or done == self.steps

    def measure(self, done: int) -> bool:
        return residuals_are_due(done, self.steps)

    def save(self, done: int) -> bool:
        return every(self.loop.checkpoint_every, done) or done == self.last


def every(steps: int, done: int) -> bool:
    """Whether `done` is a multiple of `steps`; never for 0."""
    return steps > 0 and done % steps == 0


@contextmanager
def open_run(config: TrainConfig) -> Iterator[Run]:
    """A run in its directory, which this process group owns inside the block. All ranks enter.

    Raises UserError when the run directory belongs to another config or to other data or is in
    use, when the batch
    does not divide, when the engine or the number of processes is not what was asked for, when
    the checkpoints that were written cannot be read or are not whole, and, also from inside the
    block, when the disk is full or refuses to be written.
    """
    run_dir, loop = Path(config.run), config.loop
    with disk_full_as_user_error(run_dir):
        resolve_precision(run_dir, config)
    engine = build_engine(config)
    check_batch_divides(config, engine.accelerator.num_processes)
    groups = CpuGroups()
    data = RunData(run_dir, config)
    on_main_process(run_dir, lambda: check_run_dir(run_dir, config), groups.control)
    on_main_process(run_dir, data.check, groups.control)
    with lock_run_dir(run_dir, groups.control), disk_full_as_user_error(run_dir):
        resume_point = choose_resume_point(run_dir, groups.control)
        with (
            Preemption(run_dir, loop.checkpoint_every_minutes, groups.control) as preemption,
            Watchdog(run_dir, loop.hang_timeout_minutes) as watchdog,
        ):
            about = describe_environment(engine.accelerator, engine.name, loop.precision)
            open_run_dir(run_dir, config, about, groups.control)
            on_main_process(run_dir, data.record, groups.control)
            with CheckpointWriter(
                run_dir / "checkpoints",
                keep=loop.keep_checkpoints,
                background=loop.async_checkpoints,
                group=groups.checkpoint,
                record=run_dir / LAST_CHECKPOINT,
                damaged=resume_point.damaged if resume_point else (),
            ) as checkpoints:
                yield Run(config, engine, groups, preemption, watchdog, checkpoints, resume_point)


class Run:
    """A training run. After `start`: `data_loader`, `train_step`, `due` and the methods below."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        groups: CpuGroups,
        preemption: Preemption,
        watchdog: Watchdog,
        checkpoints: CheckpointWriter,
        resume_point: Choice | None,
    ) -> None:
        self.config, self.loop, self.run_dir = config, config.loop, Path(config.run)
        self.engine, self.groups, self.preemption = engine, groups, preemption
        self.watchdog, self.checkpoints = watchdog, checkpoints
        self.resume_point = resume_point

    def start(self, task: Task, train_set: Dataset, validation: Validation) -> bool:
        """Load the newest good checkpoint, if there is one, and make what the loop needs.

        Returns False where the run is complete already.
        """
        config, loop, engine = self.config, self.loop, self.engine
        self.train_set, self.validation = train_set, validation
        self.steps = total_steps(loop, len(train_set))
        here = engine.accelerator
        self.throughput = ThroughputMeter(task, loop, here.device, steps=self.steps)
        meta = engine.setup(
            task,
            partial(resume, self.run_dir, choice=self.resume_point, group=self.groups.control),
        )
        start: int = meta["step"]
        if meta.get("steps", self.steps) != self.steps:
            raise UserError(
                f"{self.run_dir} was started with {meta['steps']} steps, but the data now give "
                f"{self.steps}: they are not the same as before; restore {config.data}, or choose "
                "another run directory"
            )
        if start >= self.steps:
            self.mark_complete()  # it was killed between its last checkpoint and this
            print(f"run {self.run_dir} is complete at step {start}: nothing to do", flush=True)
            return False
        engine.wrap()
        if is_main():
            print(engine.describe(), flush=True)
        last = min(self.steps, loop.stop_at_step or self.steps)
        self.done, self.due = start, Due(loop, self.steps, last)
        self.logger = RunLogger(
            self.run_dir, config, start=start, steps=self.steps, group=self.groups.control
        )
        self.skipped = SkippedSteps(
            self.run_dir, count=meta.get("skipped", 0), budget=loop.max_skipped_steps
        )
        self.best = meta.get("best") if loop.keep_best else None
        self.new_best = False
        self.data_loader = PrefetchingLoader(
            train_set,
            seed=config.seed,
            start=start,
            stop=last,
            global_batch_size=loop.global_batch_size,
            gradient_accumulation=loop.gradient_accumulation,
            rank=here.process_index,
            world_size=here.num_processes,
            device=here.device,
        )
        self.profiler = Profiler(self.run_dir, loop, start=start, stop=last)
        train_step = build_train_step(engine, config, start=start, steps=self.steps)
        self.train_step = with_faults(
            train_step, engine.replicated_tensors, lambda: self.preemption.signal != 0
        )
        if start == 0:
            self.measure_residuals()
        self.throughput.restart(start, 0.0)
        return True

    def after_step(self, done: int, result: StepResult) -> None:
        """Keep count of a finished step; nothing is read from the device."""
        self.done = done
        self.skipped.add(done, result.finite, result.loss)
        self.logger.advance(done)
        self.profiler.step(done)
        self.watchdog.beat()

    def compare_replicas(self, done: int) -> None:
        """Raises UserError, on all ranks, where the processes' replicas differ."""
        compare_replicas(self.engine.replicated_tensors(), done)

    def log(self, done: int, batches: list[Batch]) -> None:
        """Write the metrics since the last line; `batches` are those of the last step."""
        self.skipped.read(self.sample_names)
        values = {
            **self.train_step.read_metrics(),
            "learning_rate": learning_rate(done - 1, self.steps, self.config.optimizer),
            "parameter_norm": self.engine.parameter_norm(),
        }
        values |= self.throughput.read(done, self.data_loader.waited, batches)
        values |= self.data_loader.read_statistics()
        if self.skipped.count:
            values["skipped_steps"] = self.skipped.count
        self.logger.log(done, values)

    def measure_residuals(self) -> None:
        """Measure the unit and the threshold of the causal terms; a task without has none."""
        if not isinstance(self.config, TrainWorldModel):
            return
        validation, engine = self.validation, self.engine
        with engine.evaluation_task() as task:
            predictor = cast(Any, task).predictor
            measured = measure_residuals(
                predictor, validation.dataset, validation.ids, autocast=engine.autocast
            )
        if measured is not None:
            cast(Any, engine.task).set_residuals(measured)
        self.watchdog.beat()

    def validate(self, done: int) -> None:
        """Measure the validation samples, draw images, and note the best loss."""
        validation, size = self.validation, self.loop.global_batch_size
        with self.engine.evaluation_task() as task:
            values = validate(task, validation.dataset, validation.ids, self.engine, size)
            if validation.draw is not None and is_main():
                validation.draw(self.logger, done, task)
            self.logger.log(done, values, kind="val")
        if self.loop.keep_best and values["loss"] < (self.best["loss"] if self.best else math.inf):
            self.best, self.new_best = {"step": done, "loss": values["loss"]}, True
        self.watchdog.beat()
        # A validation is no training time.
        self.throughput.restart(done, self.data_loader.waited)

    @property
    def must_save(self) -> bool:
        """Whether a checkpoint is due for another reason than the number of steps."""
        return self.new_best or self.preemption.checkpoint_due or self.skipped.over_budget

    def save(self, done: int) -> None:
        """Write a checkpoint.

        Raises UserError, after it, when more steps than loop.max_skipped_steps were skipped.
        """
        self.skipped.read(self.sample_names)
        meta = {
            "position": done * self.loop.global_batch_size,
            "processes": self.engine.accelerator.num_processes,
            "skipped": self.skipped.count,
            "best": self.best,
            "steps": self.steps,
        }
        with self.throughput.saving():
            self.engine.save(self.checkpoints, step=done, meta=meta)
        self.new_best = False
        self.watchdog.beat()
        if self.skipped.over_budget:
            self.logger.close()
            raise UserError(
                f"{self.skipped.count} steps up to {done} of {self.run_dir} had a loss or gradient "
                "that is not finite, more than "
                f"loop.max_skipped_steps={self.loop.max_skipped_steps}: {self.skipped.path} names "
                "their samples; mend these, or lower optimizer.lr in a new run"
            )

    def finish(self, stop: int) -> int:
        """End the run, or this start of it after the signal `stop`; returns the exit code."""
        self.profiler.close()
        self.logger.close()
        self.checkpoints.wait()
        if (read := self.data_loader.describe()) and is_main():
            print(read, flush=True)
        if self.done == self.steps:
            on_main_process(self.run_dir, self.mark_complete, self.groups.control)
        self.engine.accelerator.wait_for_everyone()
        self.engine.accelerator.end_training()
        if stop and self.done < self.steps:
            return self.preemption.exit_code(stop, self.done)
        return 0

    def mark_complete(self) -> None:
        """Write RUN/done.json, on rank zero."""
        if is_main():
            write_json(self.run_dir / "done.json", {"step": self.steps})

    def sample_names(self, step: int) -> list[str]:
        """(global batch,): all samples of a step, by names that a user can look up."""
        size = self.loop.global_batch_size
        ids = self.train_set.sample_ids(self.config.seed, step * size, size)
        return self.train_set.sample_names(ids)


def total_steps(loop: LoopConfig, samples: int) -> int:
    """Steps of a complete run over a split of `samples`."""
    return loop.steps or math.ceil(loop.epochs * samples / loop.global_batch_size)
