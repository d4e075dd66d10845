"""Types of slots on disk.

float32 ──narrow──> float16 | float32 | bfloat16 (its bits as uint16: .npy has no such type) ──widen──> float32
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
}
SERIAL = 1 << 15  # elements: at::internal::GRAIN_SIZE, up to which torch takes one thread
EXPONENT = {
    "f2": (np.uint16, 0x7C00),
    "f4": (np.uint32, 0x7F800000),
    "f8": (np.uint64, 0x7FF0000000000000),
    "u2": (np.uint16, 0x7F80),
}


def stored(dtype: str) -> np.dtype:
    """The numpy type of a manifest's `dtype`; UserError for one that is none of DTYPES."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """Floats as they are stored, rounded to nearest even; what is in the stored type already is returned as it is."""
    import torch  # here, since only who writes needs it: its conversions take an eighth of numpy's time

    if array.dtype == stored(dtype):
        return np.ascontiguousarray(array)
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    narrowed = torch.from_numpy(array).to(getattr(torch, dtype))
    return narrowed.view(torch.uint16).numpy() if dtype == "bfloat16" else narrowed.numpy()


def widen(array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Slots as stored (or float32) -> float32, exactly; into `out` (contiguous) if given.

    By torch, since numpy converts float16 in software at a tenth of its speed; in one thread, since this runs beside training steps, whose
    threads a second team would stall.
    """
    import torch  # here, since who only looks need not wait for it

    if array.dtype == np.float32 and out is None:
        return array
    out = np.empty(array.shape, np.float32) if out is None else out
    narrow = torch.from_numpy(np.require(array, requirements=["C", "W"]).reshape(-1))
    narrow = narrow.view(torch.bfloat16) if array.dtype == np.uint16 else narrow
    torch._foreach_copy_(
        list(torch.from_numpy(out.reshape(-1)).split(SERIAL)), list(narrow.split(SERIAL))
    )
    return out


def finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite: the exponent bits of none are all ones. On float16 far faster than np.isfinite."""
    integer, mask = EXPONENT[array.dtype.str[1:]]
    return not array.size or bool((array.view(integer) & integer(mask)).max() != mask)
