"""The order of samples: each once an epoch, the same for any number of processes and any stop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.data.sampler import epoch_permutation, sample_ids

seeds = st.integers(-(2**63), 2**64 - 1)
lengths = st.integers(1, 200)


@settings(deadline=None)
@given(seeds, lengths, st.integers(0, 5))
def test_each_sample_once_an_epoch(seed, length, epoch):
    ids = sample_ids(seed, epoch * length, length, length)
    assert ids.dtype == np.int64
    assert sorted(ids) == list(range(length))


@settings(deadline=None)
@given(seeds, lengths, st.integers(0, 1000), st.integers(1, 8), st.integers(1, 40))
def test_the_same_global_batch_for_any_number_of_processes(seed, length, step, ranks, share):
    batch = ranks * share
    whole = sample_ids(seed, step * batch, batch, length)
    parts = [sample_ids(seed, step * batch + rank * share, share, length) for rank in range(ranks)]
    assert np.array_equal(whole, np.concatenate(parts))


@settings(deadline=None)
@given(seeds, lengths, st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_stops_and_epoch_borders_leave_no_trace(seed, length, counts):
    position, pieces = 0, []
    for count in counts:
        pieces.append(sample_ids(seed, position, count, length))
        position += count
    assert np.array_equal(np.concatenate(pieces), sample_ids(seed, 0, position, length))


def test_order_differs_between_epochs_and_seeds():
    orders = [sample_ids(seed, epoch * 100, 100, 100) for seed in (0, 1) for epoch in (0, 1)]
    assert all(not np.array_equal(orders[i], orders[j]) for i in range(4) for j in range(i))


def test_order_is_what_it_was():
    """A resumed run depends on this order: a change breaks every run that is under way."""
    assert sample_ids(0, 0, 8, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_cached_order_cannot_be_changed():
    with pytest.raises(ValueError):
        epoch_permutation(0, 0, 5)[0] = 1
    ids = sample_ids(0, 0, 5, 5)
    ids[0] = -1
    assert sample_ids(0, 0, 5, 5).min() == 0


def test_bad_requests_are_refused():
    for arguments in ((0, 0, 1, 0), (0, -1, 1, 5), (0, 0, -1, 5)):
        with pytest.raises(ValueError):
            sample_ids(*arguments)
