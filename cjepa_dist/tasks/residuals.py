"""Running statistics of the predictor's one-step residuals, from sums that are exact over ranks.

prediction, truth ──residual_sums──> (D + 1 + BINS,) ──sum over passes and ranks──>
    mean squared residual of each dimension (D,)     the unit of the causal losses
    median residual of a slot ()                     the threshold of graph estimators
"""

from __future__ import annotations

import torch
from torch import Tensor

from cjepa_dist.causal.interventional_graph import residual_nats

DECAY = 0.98  # of the running statistics, a step
BINS, LOG_RANGE = 512, (-7.0, 14.0)  # of the histogram: each bin is 4 % wide


def residual_sums(prediction: Tensor, truth: Tensor, seen: Tensor, sigma2: Tensor) -> Tensor:
    """(D + 1 + BINS,): sum of squared residuals, their count, histogram of slots' residuals.

    prediction, truth (B, T_p, S, D); seen (B, T_p, S) float, 1 where a slot counts; sigma2 (D,).
    """
    error = (prediction - truth).float()
    squares = (error.square() * seen[..., None]).sum((0, 1, 2))
    of_slot = residual_nats(prediction.float(), truth, sigma2)
    low, high = LOG_RANGE
    place = (of_slot.clamp(min=1e-30).log() - low) / (high - low) * BINS
    bins = place.long().clamp(0, BINS - 1).flatten()
    zeros = torch.zeros_like(squares[:1]).expand(BINS)
    histogram = zeros.scatter_add(0, bins, seen.amin(1).flatten())
    return torch.cat([squares, seen.sum()[None], histogram])


def variance_and_median(sums: Tensor, slot_dim: int) -> tuple[Tensor, Tensor]:
    """Residual variance (D,) and median residual () from what `residual_sums` returned, summed."""
    squares, count, histogram = sums[:slot_dim], sums[slot_dim], sums[slot_dim + 1 :]
    return (squares / count.clamp(min=1)).clamp(min=1e-8), histogram_median(histogram)


def histogram_median(histogram: Tensor) -> Tensor:
    """() the median of a histogram over exp(LOG_RANGE), interpolated within its bin."""
    below = histogram.cumsum(0)
    half = below[-1] / 2
    # (1,): indexing by a () tensor would read it from the device.
    bin = (below < half).sum(dim=0, keepdim=True).clamp(max=BINS - 1)
    inside = histogram.gather(0, bin)
    part = (half - (below.gather(0, bin) - inside)) / inside.clamp(min=1)
    low, high = LOG_RANGE
    return (low + (high - low) / BINS * (bin + part)).exp()[0]
