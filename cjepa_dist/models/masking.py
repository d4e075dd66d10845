"""Which slots are hidden, and the random numbers behind it: functions of (seed, step, global sample index), of nothing else.

A draw that depends on no generator state is the same on every device and for any number of processes, and a resumed run repeats it
(decision 3 of the architecture). The generator is a counter hashed by splitmix64 (Steele, Lea, Flood 2014), in int64 tensor operations.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.config.schema import MaskConfig
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import uniform

RELEASED_SEED = 42  # of the released code, which draws its set anew from this seed in every forward

STREAM_COUNT, STREAM_ORDER = (
    0x6D61736B,
    0x6D61736C,
)  # any other users of `uniform` take other numbers


def hidden_slots(
    config: MaskConfig, seed: int, step: int | Tensor, sample: Tensor, slots: int
) -> Tensor:
    """The slots whose history is hidden: sample (B,) int64, the global sample indices, -> (B, S) bool.

    `fixed`: the released code's set, the same for ever; `batch`: one set a step; `sample`: a set of its own for each sample. How many are
    hidden is drawn from `config.probs` likewise (in `fixed`: once a run). Raises UserError if `counts` is no distribution over 0 .. S.
    """
    check_counts(config.probs, slots)
    if config.mode == "fixed":
        number = draw_number(config.probs, uniform(seed, 0, sample[:1] * 0, 1, STREAM_COUNT))
        slot = torch.arange(slots, device=sample.device)
        # Comparisons with Python numbers, for a table of indices would have to be copied to the device in every step.
        rank = sum((slot == chosen) * place for place, chosen in enumerate(released_order(slots)))
        return (rank < number).expand(len(sample), slots)
    who = sample if config.mode == "sample" else sample[:1] * 0
    number = draw_number(config.probs, uniform(seed, step, who, 1, STREAM_COUNT))
    rank = uniform(seed, step, who, slots, STREAM_ORDER).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < number).expand(len(sample), slots)


def draw_number(counts: list[float], u: Tensor) -> Tensor:
    """Invert the distribution function: u (B, 1) -> how many slots to hide, (B, 1) int64."""
    edges = list(accumulate(counts))[:-1]
    return sum(((u >= edge).long() for edge in edges), torch.zeros_like(u, dtype=torch.int64))


def check_counts(counts: list[float], slots: int) -> None:
    if not counts or min(counts) < 0 or abs(sum(counts) - 1) > 1e-6:
        raise UserError(
            f"mask.probs={counts} must be probabilities of hiding 0, 1, 2, ... slots that sum to 1"
        )
    if len(counts) > slots + 1:
        raise UserError(f"mask.probs={counts} would hide up to {len(counts) - 1} of {slots} slots")


@torch.compiler.assume_constant_result
def released_order(slots: int) -> list[int]:
    """The order in which the released code hides slots: its set of n is the first n; 0, 1, 5, 2, ... for 7 slots."""
    order: list[int] = np.random.RandomState(RELEASED_SEED).permutation(slots).tolist()
    return order
