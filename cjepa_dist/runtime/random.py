"""Random numbers without state: functions of a seed, the step and the sample.

All of them mix bits by one function, that of splitmix64 (Steele et al. 2014). It is written for
Python integers and numpy (`mix`) and for torch (`mix_tensor`), which has no unsigned 64-bit
arithmetic; both give the same 64 bits on any machine and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFFFFFFFFFF
GAMMA = 0x9E3779B97F4A7C15
MIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shift, factor


def mix(x: Any, number: Callable[[int], Any] = int) -> Any:
    """64 well-mixed bits of a Python integer below 2^64, or of a numpy array of uint64.

    `number` makes constants of the same type: int or np.uint64.
    """
    for shift, factor in MIX_STEPS:
        x = (x ^ (x >> number(shift))) * number(factor) & number(MASK)
    return x ^ (x >> number(31))


def mix_tensor(x: Tensor) -> Tensor:
    """The same bits of an int64 tensor."""
    for shift, factor in MIX_STEPS:
        x = (x ^ shift_right(x, shift)) * as_int64(factor)
    return x ^ shift_right(x, 31)


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all of the numbers, for torch.manual_seed."""
    state = 0
    for number in numbers:
        state = mix((state ^ (number & MASK)) + GAMMA & MASK)
    return state >> 1


def hash_array(values: np.ndarray, seed: int) -> np.ndarray:
    """uint64 hash of each value with the seed: `hash_combine(values, seed)` in numpy."""
    with np.errstate(over="ignore"):
        return mix(values.astype(np.uint64) + np.uint64((seed + 1) * GAMMA & MASK), np.uint64)


def hash_combine(key: Tensor, value: int | Tensor) -> Tensor:
    """Hash a value into a key, both int64.

    One to one in each, so equal results come only from equal histories, or a 64-bit collision.
    """
    if isinstance(value, int):
        value = torch.full_like(key, value)  # so that products wrap around as int64 does
    return mix_tensor(key + (value + 1) * as_int64(GAMMA))


def uniform(seed: int, step: int | Tensor, sample: Tensor, n: int, stream: int) -> Tensor:
    """n float32 numbers in [0, 1) for each sample: (B,) int64 -> (B, n).

    `step` is an int or a 0-d int64 tensor; `stream` keeps draws for different purposes apart.
    """
    start = torch.zeros((), dtype=torch.int64, device=sample.device)
    key = reduce(hash_combine, (seed, stream, step), start)
    columns = torch.arange(n, device=sample.device)
    bits = hash_combine(hash_combine(key, sample)[:, None], columns)
    # The upper 24 bits: a float32 below 1 has no more.
    return shift_right(bits, 40).to(torch.float32) * 2.0**-24


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Right shift of int64 that fills with zeros; torch's own repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def as_int64(value: int) -> int:
    """The signed integer with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
