"""A training step recorded as a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.errors import UserError
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience.nonfinite import propagate_nonfinite
from cjepa_dist.runtime.random import derive_seed
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.tasks.schedule import TermWeights
from cjepa_dist.training.train_step import Batch, EagerStep


@dataclass
class RecordedStep:
    """What one shape of batch, under one set of loss terms, runs on; `graph` from its second step on."""

    batch: Batch
    terms: tuple[str, ...]
    loss: Tensor
    good: Tensor
    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None  # (names, 2)
    graph: torch.cuda.CUDAGraph | None = None


class CudaGraphStep(EagerStep):
    """The same on one GPU, replayed. The first step of a kind runs as it is, so that kernels are loaded and optimizer state is made."""

    def __init__(self, engine: Engine, config: TrainConfig, *, start: int, steps: int) -> None:
        super().__init__(engine, config, start=start, steps=steps)
        device = engine.handle.device
        self.counter = torch.full((1,), start, dtype=torch.int64, device=device)
        unit = replace(config.optimizer, lr=1.0)
        self.share = torch.tensor(
            [learning_rate(step, steps, unit) for step in range(steps)], device=device
        )
        for part in engine.optimizers:
            for group in part.param_groups:
                group["lr"] = config.optimizer.lr  # a checkpoint brings that of its step
        schedule: list[TermWeights] = [engine.task.terms(step / steps) for step in range(steps)]  # type: ignore[operator]
        self.names = sorted({name for terms in schedule for name in terms.values})
        self.active = [tuple(sorted(terms.values)) for terms in schedule]
        table = [[float(terms.values.get(name, 0.0)) for name in self.names] for terms in schedule]
        self.weights = torch.tensor(table, device=device).view(steps, len(self.names))
        self.recordings: dict[Any, RecordedStep] = {}
        self.pool: Any = None

    def __call__(self, batches: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        (batch,) = batches
        torch.manual_seed(derive_seed(self.config.seed, step, 0))
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
                self.sums.add(
                    {name: (table[i, 0], table[i, 1]) for i, name in enumerate(recording.names)}
                )
                recording.sums.zero_()
        return super().read()

    def recording(self, batch: Batch, terms: tuple[str, ...]) -> RecordedStep:
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
            buffers = {
                name: torch.empty(shape, dtype=batch[name].dtype, device=device)
                for name, shape in shapes.items()
            }
            loss, good = (
                torch.zeros((), device=device),
                torch.zeros((), dtype=torch.bool, device=device),
            )
            self.recordings[key] = RecordedStep(buffers, terms, loss, good)
        found = self.recordings[key]
        for name, value in batch.items():
            if name in ragged:
                found.batch[name][len(value) :].fill_(ragged[name][1])
                found.batch[name][: len(value)].copy_(value, non_blocking=True)
            else:
                found.batch[name].copy_(value, non_blocking=True)
        return found

    def record(self, recording: RecordedStep) -> torch.cuda.CUDAGraph:
        """The step's launches, none of which is executed. UserError where something in it asks the device for a value."""
        graph, groups = (
            torch.cuda.CUDAGraph(),
            [group for part in self.engine.optimizers for group in part.param_groups],
        )
        before = [group.get("capturable") for group in groups]
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        for group in groups:
            group["capturable"] = (
                True  # torch's own check, which asks for it although fused optimizers can be captured without
            )
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.run(recording)
        except RuntimeError as error:
            raise UserError(
                f"a step of this run cannot be recorded as a CUDA graph ({error}): set loop.cuda_graph=false"
            ) from error
        finally:
            for group, value in zip(groups, before):
                if value is None:
                    del group["capturable"]
                else:
                    group["capturable"] = value
        return graph

    def run(self, recording: RecordedStep) -> None:
        """One step on the recording's buffers; whatever it leaves behind is written into tensors that stay where they are."""
        engine, place = self.engine, self.counter
        row = self.weights.index_select(0, place)[0]
        terms = TermWeights({name: row[self.names.index(name)] for name in recording.terms})
        with engine.autocast():
            outcome: TaskOutput = engine.model(
                to_device(recording.batch, place.device), place[0], terms, None
            )
            loss = propagate_nonfinite(outcome.loss)
            engine.backward(loss)
        norm, good = engine.update(
            outcome.statistics, place[0], self.share.index_select(0, place)[0]
        )
        metrics = {**outcome.metrics, "gradient_norm": (norm, torch.ones_like(norm))}
        table = torch.stack(
            [torch.stack([value.float() for value in metrics[name]]) for name in sorted(metrics)]
        )
        if recording.sums is None:
            recording.names, recording.sums = sorted(metrics), torch.zeros_like(table)
        recording.sums += torch.where(good, table, 0)
        recording.loss.copy_(loss.detach())
        recording.good.copy_(good)
        self.counter += 1


def build_train_step(engine: Engine, config: TrainConfig, *, start: int, steps: int) -> EagerStep:
    """The kind of step that fits: captured where one process trains on its own, on a GPU, and loop.cuda_graph allows it."""
    alone = (
        type(engine) is Engine
        and engine.handle.device.type == "cuda"
        and not isinstance(engine.model, DistributedDataParallel)
    )
    kind = (
        CudaGraphStep
        if alone and config.loop.cuda_graph and config.loop.gradient_accumulation == 1
        else EagerStep
    )
    return kind(engine, config, start=start, steps=steps)
