"""One training step without the loop around it, and one forward pass of a step."""

from __future__ import annotations

from typing import Any

import torch

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.dataset import Batch
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.tasks.build import Task, build_task


class BareStep:
    """Forward, loss, backward, clipping and update on batches in memory, one after the other.

    Without reading data, logging, seeds and the guard against values that are not finite.
    `progress` fixes which part of the run is behind us, 0 to 1; None lets it move with the steps.
    With `compiled` the number of the step stays 0: a new number would be a new graph.
    """

    def __init__(
        self,
        config: TrainConfig,
        batches: list[Batch],
        *,
        precision: str,
        progress: float | None = None,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        device = batches[0]["slots"].device
        self.config, self.batches = config, batches
        self.task = build_task(config).to(device).train()
        self.forward: Any = torch.compile(self.task) if compiled else self.task
        self.optimizers = build_optimizers(self.task, config.optimizer)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.progress, self.compiled, self.step = progress, compiled, 0

    def __call__(self) -> None:
        batch, progress = self.batches[self.step % len(self.batches)], self.progress
        if progress is None:
            progress = self.step / self.config.loop.steps
        with self.autocast:
            output = run_forward(self.task, batch, self.step, progress, self.forward)
        output.loss.backward()
        limit = self.config.optimizer.max_grad_norm or float("inf")
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), limit, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 0 if self.compiled else 1


def run_forward(
    task: Task, batch: Batch, step: int, progress: float, forward: Any = None
) -> TaskOutput:
    """The output of `task` for a batch that is the global batch of a step.

    `forward` is called instead of the task, for example a compiled one.
    """
    if "sample" in batch:
        place = torch.arange(len(batch["sample"]), device=batch["sample"].device)
        batch = batch | {"sample": step * len(place) + place}
    context = task.step_context([batch], step, task.term_weights(progress))
    return (forward or task)(batch, context)
