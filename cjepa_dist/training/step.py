"""A training step: batches -> weights and statistics moved, metrics added up. Two kinds with one signature.

    Eager      survey, forward and backward of each pass, update: launch by launch    any engine, any device
    Captured   the same launches, recorded once and replayed as one (a CUDA graph)    one process on a GPU

A small model's step is some 1,500 launches of 2 microseconds of work each: on an H100 they took 46 ms to issue and 3 to do. A recording
fixes addresses and Python numbers, so what changes from step to step is in the device's memory: the batch, copied into fixed buffers, the
number of the step, and tables of the learning rate and of the weights of loss terms over all steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cjepa_dist import runtime
from cjepa_dist.data.windows import to_device
from cjepa_dist.errors import UserError
from cjepa_dist.tasks import Outcome, Terms
from cjepa_dist.training.engine import Engine
from cjepa_dist.training.folder import Config
from cjepa_dist.training.optimizer import learning_rate
from cjepa_dist.training.skip import spread

Batch = dict[str, Tensor]
Metrics = dict[str, tuple[Tensor, Tensor]]


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


def stepper(engine: Engine, config: Config, *, start: int, steps: int) -> Eager:
    """The kind of step that fits: captured where one process trains on its own, on a GPU, and loop.capture allows it."""
    alone = type(engine) is Engine and engine.handle.device.type == "cuda" and not isinstance(engine.model, DistributedDataParallel)
    kind = Captured if alone and config.loop.capture and config.loop.accumulation == 1 else Eager
    return kind(engine, config, start=start, steps=steps)


class Eager:
    """Call it with a step's batches (host memory), then `read` the metrics when it is time."""

    def __init__(self, engine: Engine, config: Config, *, start: int, steps: int) -> None:
        self.engine, self.config, self.steps, self.sums = engine, config, steps, Sums()

    def __call__(self, batches: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        """One step, counted from 0. Returns its loss () and whether loss and gradient were finite, () bool; else nothing has moved."""
        engine, config = self.engine, self.config
        device, rank = engine.handle.device, engine.handle.process_index
        batches = [to_device(batch, device) for batch in batches]
        rate = learning_rate(step, self.steps, config.optimizer)
        for part in engine.optimizers:
            for group in part.param_groups:
                group["lr"] = rate
        statistics, metrics, total = None, Sums(), torch.zeros((), device=device)
        with engine.autocast():
            torch.manual_seed(runtime.mix(config.seed, step, rank))
            survey = engine.survey(batches, step, step / self.steps)
        for index, batch in enumerate(batches):
            with engine.sync(last=index + 1 == len(batches)), engine.autocast():
                torch.manual_seed(runtime.mix(config.seed, step, rank, *([index] if index else [])))
                outcome: Outcome = engine.model(batch, step, step / self.steps, survey)
                loss = spread(outcome.loss) / len(batches)
                engine.backward(loss)
            total += loss.detach()
            metrics.add(outcome.metrics)
            if outcome.statistics is not None:
                statistics = outcome.statistics if statistics is None else statistics + outcome.statistics
        norm, good = engine.update(statistics, step)
        metrics.add({"gradient_norm": (norm, torch.ones_like(norm))})
        self.sums.add(metrics.where(good))
        return total, good

    def read(self) -> dict[str, float]:
        """Means of the metrics since the last read, over all ranks."""
        return self.sums.read()


@dataclass
class Recording:
    """What one shape of batch, under one set of loss terms, runs on; `graph` from its second step on."""

    batch: Batch
    terms: tuple[str, ...]
    loss: Tensor
    good: Tensor
    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None  # (names, 2)
    graph: torch.cuda.CUDAGraph | None = None


class Captured(Eager):
    """The same on one GPU, replayed. The first step of a kind runs as it is, so that kernels are loaded and optimizer state is made."""

    def __init__(self, engine: Engine, config: Config, *, start: int, steps: int) -> None:
        super().__init__(engine, config, start=start, steps=steps)
        device = engine.handle.device
        self.counter = torch.full((1,), start, dtype=torch.int64, device=device)
        unit = replace(config.optimizer, lr=1.0)
        self.share = torch.tensor([learning_rate(step, steps, unit) for step in range(steps)], device=device)
        for part in engine.optimizers:
            for group in part.param_groups:
                group["lr"] = config.optimizer.lr  # a checkpoint brings that of its step
        schedule: list[Terms] = [engine.task.terms(step / steps) for step in range(steps)]  # type: ignore[operator]
        self.names = sorted({name for terms in schedule for name in terms.values})
        self.active = [tuple(sorted(terms.values)) for terms in schedule]
        table = [[float(terms.values.get(name, 0.0)) for name in self.names] for terms in schedule]
        self.weights = torch.tensor(table, device=device).view(steps, len(self.names))
        self.recordings: dict[Any, Recording] = {}
        self.pool: Any = None

    def __call__(self, batches: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        (batch,) = batches
        torch.manual_seed(runtime.mix(self.config.seed, step, 0))
        recording = self.recording(batch, self.active[step])
        if recording.graph is None and recording.sums is None:
            self.run(recording)
        else:
            if recording.graph is None:
                recording.graph = self.record(recording)
            recording.graph.replay()
        return recording.loss.clone(), recording.good.clone()

    def read(self) -> dict[str, float]:
        for recording in self.recordings.values():
            if recording.sums is not None:
                table = recording.sums.clone()
                self.sums.add({name: (table[i, 0], table[i, 1]) for i, name in enumerate(recording.names)})
                recording.sums.zero_()
        return super().read()

    def recording(self, batch: Batch, terms: tuple[str, ...]) -> Recording:
        """That of the batch's shape, its buffers holding the batch; ragged tensors are filled up to a round number of rows."""
        device, task = self.engine.handle.device, cast(Any, self.engine.task)
        ragged: dict[str, Any] = task.ragged
        batch = {name: value for name, value in batch.items() if name not in ragged or ragged[name]}
        shapes = {name: tuple(value.shape) for name, value in batch.items()}
        for name in batch.keys() & ragged.keys():
            (multiple, _), (rows, *rest) = ragged[name], shapes[name]
            shapes[name] = (-(-rows // multiple) * multiple, *rest)
        key = (terms, *sorted(shapes.items()))
        if key not in self.recordings:
            buffers = {name: torch.empty(shape, dtype=batch[name].dtype, device=device) for name, shape in shapes.items()}
            loss, good = torch.zeros((), device=device), torch.zeros((), dtype=torch.bool, device=device)
            self.recordings[key] = Recording(buffers, terms, loss, good)
        found = self.recordings[key]
        for name, value in batch.items():
            if name in ragged:
                found.batch[name][len(value) :].fill_(ragged[name][1])
                found.batch[name][: len(value)].copy_(value, non_blocking=True)
            else:
                found.batch[name].copy_(value, non_blocking=True)
        return found

    def record(self, recording: Recording) -> torch.cuda.CUDAGraph:
        """The step's launches, none of which is executed. UserError where something in it asks the device for a value."""
        graph, groups = torch.cuda.CUDAGraph(), [group for part in self.engine.optimizers for group in part.param_groups]
        before = [group.get("capturable") for group in groups]
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        for group in groups:
            group["capturable"] = True  # torch's own check, which asks for it although fused optimizers can be captured without
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.run(recording)
        except RuntimeError as error:
            raise UserError(f"a step of this run cannot be recorded as a CUDA graph ({error}): set loop.capture=false") from error
        finally:
            for group, value in zip(groups, before):
                if value is None:
                    del group["capturable"]
                else:
                    group["capturable"] = value
        return graph

    def run(self, recording: Recording) -> None:
        """One step on the recording's buffers; whatever it leaves behind is written into tensors that stay where they are."""
        engine, place = self.engine, self.counter
        row = self.weights.index_select(0, place)[0]
        terms = Terms({name: row[self.names.index(name)] for name in recording.terms})
        with engine.autocast():
            outcome: Outcome = engine.model(to_device(recording.batch, place.device), place[0], terms, None)
            loss = spread(outcome.loss)
            engine.backward(loss)
        norm, good = engine.update(outcome.statistics, place[0], self.share.index_select(0, place)[0])
        metrics = {**outcome.metrics, "gradient_norm": (norm, torch.ones_like(norm))}
        table = torch.stack([torch.stack([value.float() for value in metrics[name]]) for name in sorted(metrics)])
        if recording.sums is None:
            recording.names, recording.sums = sorted(metrics), torch.zeros_like(table)
        recording.sums += torch.where(good, table, 0)
        recording.loss.copy_(loss.detach())
        recording.good.copy_(good)
        self.counter += 1
