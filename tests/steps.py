"""One pass of a training step, for tests that need no engine."""

from typing import Any

import torch

from cjepa_dist.tasks.base import TaskOutput


def run_step(
    task: Any, batch: dict[str, torch.Tensor], step: int = 0, progress: float = 0.0
) -> TaskOutput:
    """The output of a training step whose global batch is `batch`, at a point of the run."""
    context = task.step_context([batch], step, task.term_weights(progress))
    return task(batch, context)
