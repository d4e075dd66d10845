"""What every task has in common: the output for a batch, and what the parts of one step share.

    step_context(batches, step, weights)    once a step: masks, global counts      all ranks
        └─> task(batch, context)            once a pass: loss, metrics

A task is wrapped whole: DDP synchronises gradients only of what runs inside its forward. Losses
are exact under data parallelism: what they divide by is summed over ranks first, and the average
of gradients over ranks is undone by multiplying by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = Mapping[str, float | Tensor]


@dataclass
class TaskOutput:
    """loss () to minimise; the rest is to be summed over passes and ranks.

    metrics {name: (sum, count)}, and in evaluation the moments (m,) of predictions and targets.
    """

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]
    moments: Tensor | None = None

    def without_samples(self) -> TaskOutput:
        """The same names and shapes with zeros: what a rank without samples adds to the sums."""
        zeros = {
            name: (torch.zeros_like(total), torch.zeros_like(count))
            for name, (total, count) in self.metrics.items()
        }
        moments = None if self.moments is None else torch.zeros_like(self.moments)
        return TaskOutput(self.loss, zeros, moments)


@dataclass(frozen=True)
class StepContext:
    """What all passes and ranks of one step share. The default is that of an evaluation.

    `step` is a number, or a () tensor where the step is recorded as a CUDA graph. `weights` holds
    the loss terms that count at this point of the run, by name. `masks` (global batch, S) bool are
    the hidden slots of all samples of the step. `denominators` (2,) are the global counts that two
    terms divide by; None where they are those of the batch itself. `adjacency` (S, S) is the
    published graph of the global batch.
    """

    step: int | Tensor = 0
    weights: Weights = field(default_factory=dict)
    masks: Tensor | None = None
    denominators: Tensor | None = None
    adjacency: Tensor | None = None


EVALUATION = StepContext()
