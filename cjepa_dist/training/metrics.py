"""Metrics as sums and counts, on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from cjepa_dist.runtime.collectives import all_reduce

Metrics = dict[str, tuple[Tensor, Tensor]]


class MetricAccumulator:
    """Running (sum, count) of each metric, on the device until `read`."""

    def __init__(self) -> None:
        self.values: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        """Add the sums and counts of a pass or a step."""
        for name, (total, count) in metrics.items():
            old = self.values.get(name)
            self.values[name] = (total, count) if old is None else (old[0] + total, old[1] + count)

    def where(self, finite: Tensor) -> Metrics:
        """The values; unless `finite`, nothing, or on a GPU zeros, which count no samples."""
        if finite.is_cpu:
            return self.values if finite else {}
        return {
            name: (torch.where(finite, total, 0), torch.where(finite, count, 0))
            for name, (total, count) in self.values.items()
        }

    def read(self) -> dict[str, float]:
        """Means since the last read, over all ranks; all call it.

        A metric without samples is left out.
        """
        if not self.values:
            return {}
        names = sorted(self.values)
        rows = [torch.stack([value.float() for value in self.values[name]]) for name in names]
        table = all_reduce(torch.stack(rows)).cpu()
        self.values = {}
        found = zip(names, table)
        return {name: (total / count).item() for name, (total, count) in found if count > 0}
