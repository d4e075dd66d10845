"""Running statistics of prediction residuals."""

from __future__ import annotations

from torch import Tensor

STATISTICS_DECAY = 0.98

BINS, LOG_RANGE = 512, (-7.0, 14.0)  # of the histogram of residuals: each bin is 4 % wide


def histogram_median(histogram: Tensor) -> Tensor:
    """() nats: the median of a histogram over LOG_NATS, interpolated within its bin."""
    below = histogram.cumsum(0)
    half = below[-1] / 2
    bin = (
        (below < half).sum(dim=0, keepdim=True).clamp(max=BINS - 1)
    )  # (1,): indexing by a () tensor would read it from the device
    inside = histogram.gather(0, bin)
    part = (half - (below.gather(0, bin) - inside)) / inside.clamp(min=1)
    return (LOG_RANGE[0] + (LOG_RANGE[1] - LOG_RANGE[0]) / BINS * (bin + part)).exp()[0]
