"""Rows of a large array in its stored type -> a batch in float32: one copy, one conversion, one thread.

    rows (N, W) float16 | bfloat16 (its bits as uint16) | float32 ──take──> a piece in cache ──widen──> (n, W) float32

One thread: this runs beside the training step, whose threads a second OpenMP team would stall. numpy copies rows as fast as torch, but
converts float16 in software, at a tenth of the speed of torch; torch converts in one thread what is no larger than SERIAL.
"""

from __future__ import annotations

import numpy as np
import torch

SERIAL = 1 << 15  # elements: at::internal::GRAIN_SIZE, below which torch makes no team
PIECE = 16 * SERIAL  # elements: 1 MiB of float16


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


def widen(array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The same numbers as float32, in `out` if given (contiguous); uint16 holds the bits of bfloat16."""
    out = np.empty(array.shape, np.float32) if out is None else out
    narrow = torch.from_numpy(np.ascontiguousarray(array).reshape(-1))
    narrow = narrow.view(torch.bfloat16) if array.dtype == np.uint16 else narrow
    torch._foreach_copy_(list(torch.from_numpy(out.reshape(-1)).split(SERIAL)), list(narrow.split(SERIAL)))
    return out
