"""Random numbers without state: functions of a seed, the step and the sample."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import Tensor


def hash_array(values: np.ndarray, seed: int) -> np.ndarray:
    """64 well-mixed bits of each value and the seed (splitmix64): the same on any machine, in any batch."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(
            (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))


def uniform(seed: int, step: int | Tensor, sample: Tensor, n: int, stream: int) -> Tensor:
    """n float32 numbers in [0, 1) for each sample: (B,) int64 -> (B, n).

    `step` is an int or a 0-d int64 tensor; `stream` keeps the draws made for different purposes apart.
    """
    key = reduce(
        hash_combine, (seed, stream, step), torch.zeros((), dtype=torch.int64, device=sample.device)
    )
    bits = hash_combine(hash_combine(key, sample)[:, None], torch.arange(n, device=sample.device))
    return (
        shift_right(bits, 40).to(torch.float32) * 2.0**-24
    )  # the upper 24 bits: all that a float32 below 1 resolves


def hash_combine(key: Tensor, value: int | Tensor) -> Tensor:
    """Hash a value into a key; one to one in each, so equal results come only from equal histories (or a 64-bit accident)."""
    if isinstance(value, int):
        value = torch.full_like(key, value)  # so that products wrap around as int64 does
    h = key + (value + 1) * as_int64(0x9E3779B97F4A7C15)
    h = (h ^ shift_right(h, 30)) * as_int64(0xBF58476D1CE4E5B9)
    h = (h ^ shift_right(h, 27)) * as_int64(0x94D049BB133111EB)
    return h ^ shift_right(h, 31)


def shift_right(h: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros; int64's own repeats the sign."""
    return (h >> bits) & ((1 << (64 - bits)) - 1)


def as_int64(value: int) -> int:
    """An integer as the int64 with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all of the numbers (splitmix64 steps), for torch.manual_seed."""
    state = 0
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
