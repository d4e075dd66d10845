"""A running mean of the weights (`optimizer.ema_decay`): what validations, checkpoints' model.safetensors and all that measures read.

The decay grows from 1/10 to `optimizer.ema_decay` as (1 + step) / (10 + step), so that a short run's mean forgets the initial weights: a function
of the step, like everything else. Elementwise, so each process keeps the mean of those numbers that its engine lets it hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cjepa_dist.runtime.collectives import local_part


class WeightEma:
    """`mean` {name: tensor} of the tensors `live` {name: tensor}, both laid out as the engine has it (full, DTensor, or a flat part)."""

    def __init__(self, live: dict[str, Tensor], decay: float) -> None:
        self.live, self.decay = live, decay
        self.mean = {name: value.detach().clone() for name, value in live.items()}

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """What this process holds of the means and of the weights, in one order."""
        return [local_part(value) for value in self.mean.values()], [
            local_part(value.detach()) for value in self.live.values()
        ]

    @torch.no_grad()
    def update(self, step: int | Tensor) -> None:
        """After the update of `step` (counted from 0), a number or () on the device."""
        means, weights = self.pairs()
        if isinstance(step, Tensor):
            keep = ((1 + step) / (10 + step)).clamp(max=self.decay)
            torch._foreach_mul_(means, keep)
            torch._foreach_add_(means, torch._foreach_mul(weights, 1 - keep))
        else:
            torch._foreach_lerp_(means, weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange means and weights, bit for bit."""
        means, weights = self.pairs()
        kept = [value.clone() for value in weights]
        torch._foreach_copy_(weights, means)
        torch._foreach_copy_(means, kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The means in the place of the weights inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
