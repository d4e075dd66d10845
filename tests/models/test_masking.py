"""The stateless random numbers and the hidden sets drawn from them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.config.schema import MaskConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.masking import draw_hidden_slots
from cjepa_dist.runtime.random import as_int64, hash_combine, uniform
from tests.fixtures import parity_arrays

MANY = torch.arange(50_000)


def splitmix(key: int, value: int) -> int:
    """`absorb` in Python's unbounded integers."""
    m = (1 << 64) - 1
    h = (key + (value + 1) * 0x9E3779B97F4A7C15) & m
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & m
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & m
    return h ^ (h >> 31)


@given(key=st.integers(-(2**63), 2**63 - 1), value=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_hash_is_exact_integer_arithmetic(key, value):
    assert int(hash_combine(torch.tensor(key), value)) == as_int64(splitmix(key % 2**64, value))


def test_uniform_depends_on_nothing_but_its_arguments():
    whole = uniform(3, 7, MANY[:100], 5, stream=1)
    assert (
        whole.dtype == torch.float32
        and whole.shape == (100, 5)
        and whole.min() >= 0
        and whole.max() < 1
    )
    assert torch.equal(
        whole[40:60], uniform(3, torch.tensor(7), MANY[40:60], 5, stream=1)
    )  # any share of the batch, a tensor step
    assert torch.equal(whole[:, :3], uniform(3, 7, MANY[:100], 3, stream=1))
    for seed, step, first, stream in ((4, 7, 0, 1), (3, 8, 0, 1), (3, 7, 0, 2), (3, 7, 100, 1)):
        other = uniform(seed, step, MANY[first : first + 100], 5, stream)
        assert (whole == other).float().mean() < 0.01


@pytest.mark.parametrize("vary", ["sample", "step", "seed", "column", "stream"])
def test_uniform_is_uniform_and_independent(vary):
    n = 50_000
    if vary == "sample":
        u = uniform(0, 0, MANY, 2, 0)
    elif vary == "column":
        u = uniform(0, 0, MANY[:2], n, 0).T
    else:  # absorb takes tensors in every place; a vector there gives what as many calls would
        seed, stream, step = (
            (MANY if vary == name else torch.tensor(5)) for name in ("seed", "stream", "step")
        )
        key = hash_combine(
            hash_combine(hash_combine(hash_combine(torch.tensor(0), seed), stream), step), 9
        )
        u = (
            torch.stack([(hash_combine(key, column) >> 40) & (2**24 - 1) for column in (0, 1)], 1)
            * 2.0**-24
        )
    u = u.double().numpy()
    error = 1 / np.sqrt(n)
    assert np.abs(u.mean(0) - 0.5).max() < 4 * error * np.sqrt(1 / 12)
    assert np.abs(u.var(0) - 1 / 12).max() < 4 * error * np.sqrt(1 / 180)
    bins = np.histogram(u[:, 0], 64, (0, 1))[0]
    assert ((bins - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
    for lag in (1, 2, 7, 64):
        assert abs(np.corrcoef(u[:-lag, 0], u[lag:, 0])[0, 1]) < 4.5 * error
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 4.5 * error


def test_keys_do_not_collide():
    """10^6 neighbouring seeds, streams, steps, samples and columns have different 64-bit keys."""
    key = torch.tensor([0])
    for count in (4, 4, 250, 64, 4):
        key = hash_combine(key[:, None], torch.arange(count)).flatten()
    assert key.unique().numel() == 4 * 4 * 250 * 64 * 4


@pytest.mark.parametrize(
    "number, released", [(1, {0}), (2, {0, 1}), (3, {0, 1, 5}), (4, {0, 1, 2, 5})]
)
def test_fixed_sets_are_the_released_ones(number, released):
    mask = MaskConfig(mode="fixed", probs=[0.0] * number + [1.0])
    for seed, step in ((0, 0), (1, 9)):
        hidden = draw_hidden_slots(mask, seed, step, MANY[:3], 7)
        assert hidden.shape == (3, 7) and all(
            set(row.nonzero().flatten().tolist()) == released for row in hidden
        )


@pytest.mark.parametrize("name", ["small", "long"])
def test_fixed_sets_of_the_fixtures(name):
    arrays = parity_arrays(f"predictor_{name}")
    mask = MaskConfig(mode="fixed", probs=[0.0] * int(arrays["num_masked_slots"]) + [1.0])
    hidden = draw_hidden_slots(mask, 0, 0, MANY[:1], arrays["x"].shape[2])[0]
    assert set(hidden.nonzero().flatten().tolist()) == set(arrays["mask_indices"].tolist())


def test_sample_mode_hides_by_its_probabilities_and_every_slot_alike():
    hidden = draw_hidden_slots(MaskConfig(), 0, 0, MANY, 7)
    shares = torch.bincount(hidden.sum(1), minlength=3) / len(MANY)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        hidden.float().mean(0), torch.full((7,), 0.4 / 7), atol=0.006, rtol=0
    )


def test_batch_mode_has_one_set_a_step():
    mask = MaskConfig(mode="batch", probs=[0.0, 0.0, 1.0])
    hidden = torch.stack(
        [draw_hidden_slots(mask, 0, step, MANY[step : step + 4], 7) for step in range(50)]
    )
    assert (hidden == hidden[:, :1]).all() and (hidden.sum(-1) == 2).all()
    assert len({tuple(row.tolist()) for row in hidden[:, 0]}) > 10


@pytest.mark.parametrize("mode", ["fixed", "batch", "sample"])
def test_extremes_and_compile(mode):
    for counts, number in (([1.0], 0), ([0.0] * 7 + [1.0], 7), ([1.0, 0.0], 0)):
        assert (
            draw_hidden_slots(MaskConfig(mode, counts), 0, 0, MANY[:9], 7).sum(1) == number
        ).all()
    compiled = torch.compile(draw_hidden_slots, fullgraph=True, backend="eager")
    mask = MaskConfig(mode)
    assert torch.equal(
        compiled(mask, 0, torch.tensor(3), MANY[:9], 7), draw_hidden_slots(mask, 0, 3, MANY[:9], 7)
    )
    assert draw_hidden_slots(mask, 0, 3, MANY[:9].to("meta"), 7).shape == (9, 7)


@pytest.mark.parametrize("counts", [[], [0.5, 0.4], [1.5, -0.5], [0.0] * 8 + [1.0]])
def test_counts_that_are_no_distribution(counts):
    with pytest.raises(UserError, match=r"mask\.probs"):
        draw_hidden_slots(MaskConfig("sample", counts), 0, 0, MANY[:1], 7)
