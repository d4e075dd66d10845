"""Exponential moving average (EMA) of the weights, `optimizer.ema_decay`.

Validations, model.safetensors and all evaluations use the mean instead of the weights. The decay
grows from 1/10 to `optimizer.ema_decay` as (1 + step) / (10 + step), so that even the mean of a
short run forgets the initial weights; it is a function of the step, so nothing has to be restored.
The mean is elementwise: each process keeps that of the part of the weights it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cjepa_dist.runtime.collectives import local_part


class WeightEma:
    """`mean` {name: tensor} of `weights` {name: tensor}.

    Both are laid out as the engine has it: full, as a DTensor, or as a flat part.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.mean = {name: value.detach().clone() for name, value in weights.items()}

    def local_parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's parts of the means and of the weights, in the same order."""
        return [local_part(value) for value in self.mean.values()], [
            local_part(value.detach()) for value in self.weights.values()
        ]

    @torch.no_grad()
    def update(self, step: int | Tensor) -> None:
        """After the optimizer's step number `step`, counted from 0: an int, or () on the device."""
        means, weights = self.local_parts()
        if isinstance(step, Tensor):
            keep = ((1 + step) / (10 + step)).clamp(max=self.decay)
            torch._foreach_mul_(means, keep)
            torch._foreach_add_(means, torch._foreach_mul(weights, 1 - keep))
        else:
            torch._foreach_lerp_(means, weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange means and weights, bit for bit."""
        means, weights = self.local_parts()
        kept = [value.clone() for value in weights]
        torch._foreach_copy_(weights, means)
        torch._foreach_copy_(means, kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the weights are replaced by their means."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
