"""Validation: each sample counted once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.runtime.collectives import all_reduce
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.tasks.collapse import collapse_metrics
from cjepa_dist.training.data_loader import Dataset
from cjepa_dist.training.metrics import MetricAccumulator


@torch.no_grad()
def validate(
    task: Any, source: Dataset, ids: np.ndarray, engine: Engine, batch: int
) -> dict[str, float]:
    """Metrics over `ids`, each counted once: ranks take interleaved shares, uneven ones included, and no forward waits for another rank."""
    task.eval()
    handle = engine.handle
    mine, sums, moments = (
        ids[handle.process_index :: handle.num_processes],
        MetricAccumulator(),
        None,
    )
    blank = not len(
        mine
    )  # more processes than samples: such a rank adds zeros, since the others wait for its part of the sums
    mine = ids[:1] if blank else mine
    share = max(1, batch // handle.num_processes)
    for begin in range(0, len(mine), share):
        part = mine[begin : begin + share]
        content = source.gather(part, part.astype(np.int64))
        content = to_device(content, handle.device)
        with engine.autocast():
            outcome: TaskOutput = task(content, 0)
        outcome = outcome.emptied() if blank else outcome
        sums.add(outcome.metrics)
        if outcome.moments is not None:
            moments = outcome.moments if moments is None else moments + outcome.moments
    task.train()
    means = sums.read() | ({} if moments is None else collapse_metrics(all_reduce(moments)))
    return {**means, "loss": task.combine(means)}
