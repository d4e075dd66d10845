"""Validation: metrics over given samples, each counted once, whatever the number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cjepa_dist.data.dataset import Dataset
from cjepa_dist.data.windows import to_device
from cjepa_dist.engines.base import Engine
from cjepa_dist.runtime.collectives import all_reduce
from cjepa_dist.tasks.base import TaskOutput
from cjepa_dist.tasks.collapse import collapse_metrics
from cjepa_dist.training.metrics import MetricAccumulator


@torch.no_grad()
def validate(
    task: Any, dataset: Dataset, ids: np.ndarray, engine: Engine, global_batch_size: int
) -> dict[str, float]:
    """Means of the metrics over the samples `ids` of `dataset`; all ranks call it.

    Ranks take interleaved shares, which may differ in size: no forward waits for another rank.
    """
    task.eval()
    here = engine.accelerator
    mine = ids[here.process_index :: here.num_processes]
    # With more processes than samples a rank without any adds zeros: the others wait for its part.
    empty = not len(mine)
    mine = ids[:1] if empty else mine
    metrics, moments = MetricAccumulator(), None
    size = max(1, global_batch_size // here.num_processes)
    for begin in range(0, len(mine), size):
        part = mine[begin : begin + size]
        batch = to_device(dataset.get_batch(part, part.astype(np.int64)), here.device)
        with engine.autocast():
            output: TaskOutput = task(batch)
        output = output.without_samples() if empty else output
        metrics.add(output.metrics)
        if output.moments is not None:
            moments = output.moments if moments is None else moments + output.moments
    task.train()
    means = metrics.read()
    if moments is not None:
        means |= collapse_metrics(all_reduce(moments))
    return {**means, "loss": task.validation_loss(means)}
