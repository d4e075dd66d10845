"""One training step without the loop around it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.tasks.world_model import WorldModelTask


class BareStep:
    """Forward, loss, backward, update on batches in memory: what there is to do."""

    def __init__(
        self, config: TrainWorldModel, batches: list[dict[str, Tensor]], device: torch.device
    ) -> None:
        torch.manual_seed(config.seed)
        self.task = WorldModelTask(config).to(device).train()
        self.parts, self.config, self.step = (
            build_optimizers(self.task, config.optimizer),
            config,
            0,
        )
        self.batches = batches
        self.autocast = partial(
            torch.autocast, device.type, torch.bfloat16, enabled=config.loop.precision == "bf16"
        )

    def __call__(self) -> None:
        with self.autocast():
            outcome = self.task(
                self.batches[self.step % len(self.batches)],
                self.step,
                self.step / self.config.loop.steps,
            )
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(
            self.task.parameters(),
            self.config.optimizer.max_grad_norm or float("inf"),
            foreach=True,
        )
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        self.task.update(outcome.statistics)
        self.step += 1
