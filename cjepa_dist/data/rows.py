"""Rows of a large array in its stored type -> a batch in float32: one copy, one conversion, one thread.

rows (N, W) float16 | bfloat16 (its bits as uint16) | float32 ──take──> a piece in cache ──widen──> (n, W) float32
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.data.dtypes import widen

PIECE = 1 << 19  # elements: 1 MiB of float16


def gather_rows(rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """The rows (N, W) at `index` (n,), which must lie in [0, N), to `out` (n, W) float32."""
    if rows.dtype == np.float32:
        np.take(rows, index, axis=0, mode="clip", out=out)  # "raise" would copy to a buffer first
        return
    step = max(1, PIECE // rows.shape[1])
    piece = np.empty((min(step, len(index)), rows.shape[1]), rows.dtype)
    for begin in range(0, len(index), step):
        part = index[begin : begin + step]
        widen(np.take(rows, part, axis=0, mode="clip", out=piece[: len(part)]), out[begin : begin + step])
