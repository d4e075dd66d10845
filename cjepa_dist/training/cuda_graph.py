"""The training step recorded as a CUDA graph: its launches replayed as one.

A small model's step is about 1,500 launches of 2 microseconds of work each: on an H100 they took
46 ms to issue and 3 ms to run. A recording fixes addresses and Python numbers. So what changes
from step to step lies in the device's memory: the batch, copied into fixed buffers, the number of
the step, and tables over all steps of the learning rate and the weights of loss terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Batch
from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.errors import UserError
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience.nonfinite import propagate_nonfinite
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.training.train_step import StepResult, TrainStep


def build_train_step(engine: Engine, config: TrainConfig, *, start: int, steps: int) -> TrainStep:
    """The step of a run: recorded where loop.cuda_graph allows it and the run can be.

    That is one process on a GPU without gradient accumulation.
    """
    one_gpu = (
        type(engine) is Engine
        and engine.accelerator.device.type == "cuda"
        and not isinstance(engine.model, DistributedDataParallel)
    )
    recorded = one_gpu and config.loop.cuda_graph and config.loop.gradient_accumulation == 1
    kind = CudaGraphStep if recorded else TrainStep
    return kind(engine, config, start=start, steps=steps)


@dataclass
class Recording:
    """The buffers of one shape of batch under one set of loss terms, and their CUDA graph.

    `sums` (names, 2) are those of the metrics `names`; `graph` is there from the second step on.
    """

    batch: Batch
    terms: tuple[str, ...]
    loss: Tensor
    finite: Tensor
    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None


class CudaGraphStep(TrainStep):
    """A TrainStep that is recorded and replayed.

    The first step of each kind runs as it is, so that kernels are loaded and optimizer state is
    made; the second is recorded.
    """

    def __init__(self, engine: Engine, config: TrainConfig, *, start: int, steps: int) -> None:
        super().__init__(engine, config, start=start, steps=steps)
        device = engine.accelerator.device
        self.counter = torch.full((1,), start, dtype=torch.int64, device=device)
        unit = replace(config.optimizer, lr=1.0)
        ratios = [learning_rate(step, steps, unit) for step in range(steps)]
        self.lr_ratios = torch.tensor(ratios, device=device)
        for optimizer in engine.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.optimizer.lr  # a checkpoint brings that of its step
        task = cast(Any, engine.task)
        schedule = [task.term_weights(step / steps) for step in range(steps)]
        self.terms = [tuple(sorted(weights)) for weights in schedule]
        self.names = sorted({name for weights in schedule for name in weights})
        table = [[weights.get(name, 0.0) for name in self.names] for weights in schedule]
        self.weights = torch.tensor(table, device=device).view(steps, len(self.names))
        self.recordings: dict[Any, Recording] = {}
        self.pool: Any = None

    def __call__(self, batches: list[Batch], step: int) -> StepResult:
        (batch,) = batches
        self.seed_dropout(step, 0)
        recording = self.recording_for(batch, self.terms[step])
        if recording.graph is None and recording.sums is None:
            self.run(recording)
        else:
            if recording.graph is None:
                recording.graph = self.record(recording)
            recording.graph.replay()
        return StepResult(recording.loss.clone(), recording.finite.clone())

    def read_metrics(self) -> dict[str, float]:
        for recording in self.recordings.values():
            if recording.sums is not None:
                table = recording.sums.clone()
                rows = enumerate(recording.names)
                self.metrics.add({name: (table[i, 0], table[i, 1]) for i, name in rows})
                recording.sums.zero_()
        return super().read_metrics()

    def recording_for(self, batch: Batch, terms: tuple[str, ...]) -> Recording:
        """The recording of the batch's shape, its buffers filled with the batch.

        Ragged inputs are padded to a round number of rows.
        """
        device, ragged = self.engine.accelerator.device, cast(Any, self.engine.task).ragged
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
            loss = torch.zeros((), device=device)
            finite = torch.zeros((), dtype=torch.bool, device=device)
            self.recordings[key] = Recording(buffers, terms, loss, finite)
        found = self.recordings[key]
        for name, value in batch.items():
            buffer = found.batch[name]
            if name in ragged:
                buffer[len(value) :].fill_(ragged[name][1])
                buffer = buffer[: len(value)]
            buffer.copy_(value, non_blocking=True)
        return found

    def record(self, recording: Recording) -> torch.cuda.CUDAGraph:
        """Record the launches of a step; none of them is executed.

        Raises UserError where something in it asks the device for a value.
        """
        graph = torch.cuda.CUDAGraph()
        groups = [group for each in self.engine.optimizers for group in each.param_groups]
        before = [group.get("capturable") for group in groups]
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        for group in groups:
            # torch asks for it, although fused optimizers can be recorded without.
            group["capturable"] = True
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.run(recording)
        except RuntimeError as error:
            raise UserError(
                f"a step of this run cannot be recorded as a CUDA graph ({error}): "
                "set loop.cuda_graph=false"
            ) from error
        finally:
            for group, value in zip(groups, before):
                if value is None:
                    del group["capturable"]
                else:
                    group["capturable"] = value
        return graph

    def run(self, recording: Recording) -> None:
        """One step on the buffers of a recording; its results stay at fixed addresses."""
        engine, place = self.engine, self.counter
        row = self.weights.index_select(0, place)[0]
        weights = {name: row[self.names.index(name)] for name in recording.terms}
        batch = to_device(recording.batch, place.device)
        with engine.autocast():
            context = engine.step_context([batch], place[0], weights)
            output: TaskOutput = engine.model(batch, context)
            loss = propagate_nonfinite(output.loss)
            engine.backward(loss)
        lr_ratio = self.lr_ratios.index_select(0, place)[0]
        norm, finite = engine.update(place[0], lr_ratio)
        metrics = {**output.metrics, "gradient_norm": (norm, torch.ones_like(norm))}
        names = sorted(metrics)
        rows = [torch.stack([value.float() for value in metrics[name]]) for name in names]
        table = torch.stack(rows)
        if recording.sums is None:
            recording.names, recording.sums = names, torch.zeros_like(table)
        recording.sums += torch.where(finite, table, 0)
        recording.loss.copy_(loss.detach())
        recording.finite.copy_(finite)
        self.counter += 1
