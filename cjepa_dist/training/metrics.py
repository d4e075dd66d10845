"""Metrics as sums and counts, on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from cjepa_dist.runtime.collectives import all_reduce

Metrics = dict[str, tuple[Tensor, Tensor]]


class MetricAccumulator:
    """Running (sum, count) of each metric, on the device until read."""

    def __init__(self) -> None:
        self.values: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        for name, (total, count) in metrics.items():
            old = self.values.get(name)
            self.values[name] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def where(self, good: Tensor) -> Metrics:
        """What was added; unless `good`, nothing, or on a GPU zeros, and so no samples."""
        if good.is_cpu:
            return self.values if good else {}
        return {
            name: (torch.where(good, total, 0), torch.where(good, count, 0))
            for name, (total, count) in self.values.items()
        }

    def read(self) -> dict[str, float]:
        """Means over everything since the last read, over all ranks; a metric without samples is left out."""
        if not self.values:
            return {}
        names = sorted(self.values)
        table = all_reduce(
            torch.stack([torch.stack([v.float() for v in self.values[name]]) for name in names])
        ).cpu()
        self.values = {}
        return {
            name: (total / count).item() for name, (total, count) in zip(names, table) if count > 0
        }
