"""What a task returns for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass
class TaskOutput:
    """loss () to minimise; metrics {name: (sum, count)}, statistics (n,) and, in evaluation, moments (m,) to be summed over ranks."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]
    statistics: Tensor | None = None
    moments: Tensor | None = None

    def emptied(self) -> TaskOutput:
        """The same names and shapes, and no samples: what a rank without any adds to the sums."""
        nothing = {
            name: (torch.zeros_like(total), torch.zeros_like(count))
            for name, (total, count) in self.metrics.items()
        }
        return TaskOutput(
            self.loss,
            nothing,
            None,
            None if self.moments is None else torch.zeros_like(self.moments),
        )
