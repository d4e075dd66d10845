"""Bootstrap over videos.

Windows and questions of one video are correlated, so videos are drawn, not windows or questions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BOOTSTRAP_DRAWS = 1000


def bootstrap(
    values_by_video: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray | float],
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of `statistic` when videos are drawn with replacement.

    `values_by_video` (V, ...) holds the contribution of each video, such as sums and counts.
    `statistic` maps such an array to one or more numbers. A number may be nan where a draw contains
    no sample for it: its interval ignores that draw.
    """
    values = np.asarray(values_by_video)
    generator = np.random.default_rng(seed)
    drawn = np.stack(
        [
            np.asarray(
                statistic(values[generator.integers(0, len(values), len(values))]), dtype=np.float64
            )
            for _ in range(draws)
        ]
    )
    edges = [(1 - level) / 2, (1 + level) / 2]
    empty = np.isnan(drawn).all(axis=0)
    low, high = np.nanquantile(np.where(empty, 0.0, drawn), edges, axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def pooled_mean(values: np.ndarray) -> np.ndarray:
    """(V, ..., 2) of (sum, count) per video -> (...): the mean over all videos; nan if empty."""
    total = values.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total[..., 1] > 0, total[..., 0] / total[..., 1], np.nan)
