"""A training step: batches -> weights and statistics moved, metrics added up. Two kinds with one signature.

    Eager      survey, forward and backward of each pass, update: launch by launch    any engine, any device
    Captured   the same launches, recorded once and replayed as one (a CUDA graph)    one process on a GPU

A small model's step is some 1,500 launches of 2 microseconds of work each: on an H100 they took 46 ms to issue and 3 to do. A recording
fixes addresses and Python numbers, so what changes from step to step is in the device's memory: the batch, copied into fixed buffers, the
number of the step, and tables of the learning rate and of the weights of loss terms over all steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience.nonfinite import propagate_nonfinite
from cjepa_dist.runtime.random import derive_seed
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.training.metrics import MetricAccumulator

Batch = dict[str, Tensor]


class EagerStep:
    """Call it with a step's batches (host memory), then `read` the metrics when it is time."""

    def __init__(self, engine: Engine, config: TrainConfig, *, start: int, steps: int) -> None:
        self.engine, self.config, self.steps, self.sums = engine, config, steps, MetricAccumulator()

    def __call__(self, batches: list[Batch], step: int) -> tuple[Tensor, Tensor]:
        """One step, counted from 0. Returns its loss () and whether loss and gradient were finite, () bool; else nothing has moved."""
        engine, config = self.engine, self.config
        device, rank = engine.handle.device, engine.handle.process_index
        batches = [to_device(batch, device) for batch in batches]
        rate = learning_rate(step, self.steps, config.optimizer)
        for part in engine.optimizers:
            for group in part.param_groups:
                group["lr"] = rate
        statistics, metrics, total = None, MetricAccumulator(), torch.zeros((), device=device)
        with engine.autocast():
            torch.manual_seed(derive_seed(config.seed, step, rank))
            survey = engine.survey(batches, step, step / self.steps)
        for index, batch in enumerate(batches):
            with engine.sync(last=index + 1 == len(batches)), engine.autocast():
                torch.manual_seed(derive_seed(config.seed, step, rank, *([index] if index else [])))
                outcome: TaskOutput = engine.model(batch, step, step / self.steps, survey)
                loss = propagate_nonfinite(outcome.loss) / len(batches)
                engine.backward(loss)
            total += loss.detach()
            metrics.add(outcome.metrics)
            if outcome.statistics is not None:
                statistics = (
                    outcome.statistics if statistics is None else statistics + outcome.statistics
                )
        norm, good = engine.update(statistics, step)
        metrics.add({"gradient_norm": (norm, torch.ones_like(norm))})
        self.sums.add(metrics.where(good))
        return total, good

    def read(self) -> dict[str, float]:
        """Means of the metrics since the last read, over all ranks."""
        return self.sums.read()
