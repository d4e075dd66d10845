"""The hash functions of Python, numpy and torch give the same bits."""

import numpy as np
import torch

from cjepa_dist.runtime.random import (
    GAMMA,
    MASK,
    as_int64,
    derive_seed,
    hash_array,
    hash_combine,
    mix,
)

VALUES = [0, 1, 2, 12345, 2**31, 2**62 + 7]


def test_three_backends_give_the_same_bits():
    for seed in (0, 3, 2**40 + 1):
        expected = [mix((value + (seed + 1) * GAMMA) & MASK) for value in VALUES]
        assert hash_array(np.array(VALUES), seed).tolist() == expected
        found = hash_combine(torch.tensor(VALUES), seed)
        assert found.tolist() == [as_int64(value) for value in expected]


def test_bits_are_those_of_splitmix64():
    """The reference generator's first outputs for seed 0.

    https://prng.di.unimi.it/splitmix64.c
    """
    found = [mix(n * GAMMA & MASK) for n in (1, 2, 3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_seed_depends_on_each_number_and_their_order():
    seeds = {derive_seed(*numbers) for numbers in ((1, 2), (2, 1), (1, 2, 0), (1,), (0, 1, 2))}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
