"""One training step: forward, backward, update.

    batches ──> step_context, once a step
            ──> for each pass (gradient accumulation): forward, backward
            ──> update: clip, optimizers, running means; nothing if the gradient is not finite

`cuda_graph.py` has the same step recorded once and replayed, for one process on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Batch
from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.resilience.nonfinite import propagate_nonfinite
from cjepa_dist.runtime.random import derive_seed
from cjepa_dist.tasks.base import StepContext, TaskOutput
from cjepa_dist.training.metrics import MetricAccumulator


@dataclass(frozen=True)
class StepResult:
    """`loss` () of this process; `finite` () bool: whether loss and gradient were finite.

    Where they were not, nothing has changed. Both stay on the device.
    """

    loss: Tensor
    finite: Tensor


class TrainStep:
    """Call it with the batches of a step, one for each pass; `read_metrics` when it is time.

    `steps` is the length of the run: learning rate and loss weights are functions of step / steps.
    """

    def __init__(self, engine: Engine, config: TrainConfig, *, start: int, steps: int) -> None:
        self.engine, self.config, self.steps = engine, config, steps
        self.metrics = MetricAccumulator()

    def __call__(self, batches: list[Batch], step: int) -> StepResult:
        """Step number `step`, counted from 0; `batches` are in host memory or on the device."""
        engine = self.engine
        device = engine.accelerator.device
        batches = [to_device(batch, device) for batch in batches]
        self.set_learning_rate(step)
        context = self.step_context(batches, step)
        loss = torch.zeros((), device=device)
        metrics = MetricAccumulator()
        for index, batch in enumerate(batches):
            with engine.gradient_sync(last=index + 1 == len(batches)), engine.autocast():
                self.seed_dropout(step, index)
                output: TaskOutput = engine.model(batch, context)  # forward
                part = propagate_nonfinite(output.loss) / len(batches)
                engine.backward(part)
            loss += part.detach()
            metrics.add(output.metrics)
        norm, finite = engine.update(step)
        metrics.add({"gradient_norm": (norm, torch.ones_like(norm))})
        self.metrics.add(metrics.where(finite))
        return StepResult(loss, finite)

    def read_metrics(self) -> dict[str, float]:
        """Means of the metrics since the last read, over all ranks."""
        return self.metrics.read()

    def set_learning_rate(self, step: int) -> None:
        rate = learning_rate(step, self.steps, self.config.optimizer)
        for optimizer in self.engine.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step_context(self, batches: list[Batch], step: int) -> StepContext:
        """What the passes of the step share: masks, weights of loss terms, global counts."""
        weights = self.engine.task.term_weights(step / self.steps)  # type: ignore[operator]
        with self.engine.autocast():
            self.seed_dropout(step, 0)
            return self.engine.step_context(batches, step, weights)

    def seed_dropout(self, step: int, index: int) -> None:
        """Dropout is a function of the step, the rank and the number of the pass."""
        rank = self.engine.accelerator.process_index
        seed = derive_seed(self.config.seed, step, rank, *([index] if index else []))
        torch.manual_seed(seed)
