"""The slots whose history is hidden: a function of (seed, step, global sample index) only.

A draw that depends on no generator state is the same on every device and for any number of
processes, and a resumed run repeats it. The random numbers are those of `runtime.random.uniform`.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.config.schema import MaskConfig
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import uniform

RELEASED_SEED = 42  # the released code draws its set from this seed in every forward pass

# Streams of `uniform`: every purpose has its own number, so that its draws are independent.
STREAM_COUNT, STREAM_ORDER = 0x6D61736B, 0x6D61736C


def draw_hidden_slots(
    config: MaskConfig, seed: int, step: int | Tensor, sample: Tensor, slots: int
) -> Tensor:
    """Hidden slots of global sample indices: sample (B,) int64 -> (B, S) bool.

    `config.mode` says how often a set is drawn: `fixed`, once, the set of the released code;
    `batch`, one set a step; `sample`, one set a sample. The number of hidden slots is drawn from
    `config.probs` as often (`fixed`: once a run). Raises UserError if these are no distribution.
    """
    check_mask_probs(config.probs, slots)
    if config.mode == "fixed":
        number = draw_hidden_count(config.probs, uniform(seed, 0, sample[:1] * 0, 1, STREAM_COUNT))
        slot = torch.arange(slots, device=sample.device)
        # Compare with Python numbers: a table of indices would be copied to the device every step.
        rank = sum((slot == chosen) * place for place, chosen in enumerate(released_order(slots)))
        return (rank < number).expand(len(sample), slots)
    who = sample if config.mode == "sample" else sample[:1] * 0
    number = draw_hidden_count(config.probs, uniform(seed, step, who, 1, STREAM_COUNT))
    rank = uniform(seed, step, who, slots, STREAM_ORDER).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < number).expand(len(sample), slots)


def draw_hidden_count(probs: list[float], u: Tensor) -> Tensor:
    """Invert the distribution function: u (B, 1) in [0, 1) -> hidden slots (B, 1) int64."""
    edges = list(accumulate(probs))[:-1]
    return sum(((u >= edge).long() for edge in edges), torch.zeros_like(u, dtype=torch.int64))


def check_mask_probs(probs: list[float], slots: int) -> None:
    """Raises UserError if `probs` is no distribution over 0 .. `slots` hidden slots."""
    if not probs or min(probs) < 0 or abs(sum(probs) - 1) > 1e-6:
        raise UserError(
            f"mask.probs={probs} must be probabilities of hiding 0, 1, 2, ... slots that sum to 1"
        )
    if len(probs) > slots + 1:
        raise UserError(f"mask.probs={probs} would hide up to {len(probs) - 1} of {slots} slots")


def released_order(slots: int) -> list[int]:
    """The order in which the released code hides slots: 0, 1, 5, 2, ... for 7 slots.

    A set of n slots is the first n of this order.
    """
    order: list[int] = np.random.RandomState(RELEASED_SEED).permutation(slots).tolist()
    return order


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo: numpy's
# random numbers cannot be compiled.
released_order._dynamo_marked_constant = True  # type: ignore[attr-defined]
