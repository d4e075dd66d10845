"""Bootstrap over videos: everything measured in one video moves together, so videos, not windows or questions, are drawn again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 1000


def bootstrap(
    values_by_video: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray | float],
    n: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of `statistic` under drawing videos with replacement.

    `values_by_video` (V, ...) holds what one video contributes (sums and counts, say); `statistic` maps such an array to a number or an
    array of numbers, which may be nan where a draw holds no sample: those draws are left out of that number's interval.
    """
    values = np.asarray(values_by_video)
    generator = np.random.default_rng(seed)
    draws = np.stack(
        [
            np.asarray(
                statistic(values[generator.integers(0, len(values), len(values))]), dtype=np.float64
            )
            for _ in range(n)
        ]
    )
    edges = [(1 - level) / 2, (1 + level) / 2]
    empty = np.isnan(draws).all(axis=0)
    low, high = np.nanquantile(np.where(empty, 0.0, draws), edges, axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def ratio(values: np.ndarray) -> np.ndarray:
    """Pooled mean: (V, ..., 2) of (sum, count) by video -> (...) sum of sums over sum of counts, nan where the count is 0."""
    total = values.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total[..., 1] > 0, total[..., 0] / total[..., 1], np.nan)
