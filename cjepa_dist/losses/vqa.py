"""The ALOE training losses: cross-entropy of descriptive answers, binary cross-entropy of choices.

Each is a sum over the rows of this process, divided by a count of the global batch: so the result
does not depend on how rows are distributed over processes, and a process may have no rows of one
kind. Rows of the other kind have the label -1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def answer_loss(logits: Tensor, label: Tensor, count: Tensor | float) -> Tensor:
    """Cross-entropy over labelled rows / count, ().

    logits (R, answers), label (R,) int64 answer id or -1.
    """
    total = F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum")
    return total / torch.as_tensor(count).clamp(min=1)


def choice_loss(logits: Tensor, label: Tensor, count: Tensor | float) -> Tensor:
    """Binary cross-entropy over labelled rows / count, ().

    logits (R,), label (R,) int64: 1 = right, 0 = wrong, or -1.
    """
    error = F.binary_cross_entropy_with_logits(
        logits.float(), label.clamp(min=0).float(), reduction="none"
    )
    return torch.where(label >= 0, error, 0.0).sum() / torch.as_tensor(count).clamp(min=1)
