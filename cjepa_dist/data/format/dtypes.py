"""The types of slots on disk, and their conversions.

float32 ──to_storage_dtype──> float16 | float32 | bfloat16 (its bits as uint16, as .npy has no
such type) ──to_float32──> float32
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
}
SINGLE_THREAD_ELEMENTS = 1 << 15  # at::internal::GRAIN_SIZE, up to which torch takes one thread
EXPONENT_BITS = {
    "f2": (np.uint16, 0x7C00),
    "f4": (np.uint32, 0x7F800000),
    "f8": (np.uint64, 0x7FF0000000000000),
    "u2": (np.uint16, 0x7F80),
}


def storage_dtype(dtype: str) -> np.dtype:
    """The numpy type of a manifest's `dtype`; UserError if it is not one of DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def to_storage_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Floats as they are stored, rounded to nearest even; unchanged if already in that type."""
    import torch  # only writers need it: its conversions take an eighth of numpy's time

    if array.dtype == storage_dtype(dtype):
        return np.ascontiguousarray(array)
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    narrowed = torch.from_numpy(array).to(getattr(torch, dtype))
    return narrowed.view(torch.uint16).numpy() if dtype == "bfloat16" else narrowed.numpy()


def to_float32(array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Slots as stored (or float32) -> float32, exactly; into `out` (contiguous) if given.

    With torch, since numpy converts float16 in software, ten times slower. In one thread, since
    this runs beside training steps, and a second team of threads would slow those down.
    """
    import torch  # here, since many commands never convert

    if array.dtype == np.float32 and out is None:
        return array
    out = np.empty(array.shape, np.float32) if out is None else out
    stored = torch.from_numpy(np.require(array, requirements=["C", "W"]).reshape(-1))
    stored = stored.view(torch.bfloat16) if array.dtype == np.uint16 else stored
    torch._foreach_copy_(
        list(torch.from_numpy(out.reshape(-1)).split(SINGLE_THREAD_ELEMENTS)),
        list(stored.split(SINGLE_THREAD_ELEMENTS)),
    )
    return out


def to_native(array: np.ndarray) -> np.ndarray:
    """The same values in this machine's byte order; long doubles, which few have, as float64."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def all_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite: then no exponent is all ones.

    On float16 this is far faster than np.isfinite.
    """
    integer, mask = EXPONENT_BITS[array.dtype.str[1:]]
    return not array.size or bool((array.view(integer) & integer(mask)).max() != mask)
