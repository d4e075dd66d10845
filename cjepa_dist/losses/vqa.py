"""What ALOE minimises: cross-entropy of descriptive answers + binary cross-entropy of choices (`spec/aloe.md`).

Each is a sum over the rows at hand divided by a given count, that of the global batch: so it does not matter how rows fall on processes,
and a process without rows of one kind still takes part. Rows of the other kind carry the label -1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def answer_loss(logits: Tensor, label: Tensor, count: Tensor | float) -> Tensor:
    """Cross-entropy: logits (R, answers), label (R,) int64 answer id or -1 -> sum over labelled rows / count, ()."""
    return F.cross_entropy(
        logits.float(), label, ignore_index=-1, reduction="sum"
    ) / torch.as_tensor(count).clamp(min=1)


def choice_loss(logits: Tensor, label: Tensor, count: Tensor | float) -> Tensor:
    """Binary cross-entropy: logits (R,), label (R,) int64 1 = right, 0 = wrong, or -1 -> sum over labelled rows / count, ()."""
    error = F.binary_cross_entropy_with_logits(
        logits.float(), label.clamp(min=0).float(), reduction="none"
    )
    return torch.where(label >= 0, error, 0.0).sum() / torch.as_tensor(count).clamp(min=1)
