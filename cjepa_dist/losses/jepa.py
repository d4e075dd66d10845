"""The C-JEPA training loss, as released: mean squared errors in float32.

loss = future_loss (future frames of all slots) + history_loss (past frames of hidden slots)
"""

from __future__ import annotations

import torch
from torch import Tensor


def future_loss(z: Tensor, x: Tensor, history_frames: int) -> Tensor:
    """Mean squared error over all slots of the future frames: z, x (B, T_total, S, D) -> ()."""
    return (z[:, history_frames:].float() - x[:, history_frames:].float()).square().mean()


def history_loss(
    z: Tensor, x: Tensor, hidden: Tensor, history_frames: int, count: Tensor | float | None = None
) -> Tensor:
    """Mean squared error over the history of the hidden slots; 0 where none is hidden.

    z, x (B, T_total, S, D), hidden (B, S) -> (). t = 0 is included, as released. `count` > 0: the
    number of hidden slots to divide by instead, where this batch is a part of a larger one.
    """
    difference = z[:, :history_frames].float() - x[:, :history_frames].float()
    error = difference.square().mean(dim=(1, 3))  # (B, S)
    total = torch.where(hidden, error, 0.0).sum()
    return total / (hidden.sum().clamp(min=1) if count is None else count)
