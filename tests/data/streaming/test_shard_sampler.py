"""The order of a split that is read shard by shard: each window once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.data.streaming.shard_sampler import ShardSampler

seeds = st.integers(-(2**63), 2**64 - 1)
samplers = st.builds(
    ShardSampler,
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    shuffle_shards=st.integers(1, 4),
    shard_groups=st.integers(1, 7),
)


@settings(deadline=None)
@given(samplers, seeds, st.integers(0, 4), st.integers(1, 50))
def test_each_window_once_an_epoch_in_batches_that_divide_nothing(order, seed, epoch, batch):
    begin, end = epoch * order.length, (epoch + 1) * order.length
    steps = range(begin // batch, -(-end // batch))
    ids = np.concatenate([order.sample_ids(seed, step * batch, batch) for step in steps])
    samples = np.concatenate([order.locate(seed, step * batch, batch)[0] for step in steps])
    within = (samples >= begin) & (samples < end)
    assert sorted(ids[within]) == list(range(order.length))


@settings(deadline=None)
@given(samplers, seeds, st.integers(0, 30), st.integers(1, 6), st.integers(1, 12))
def test_a_part_of_a_batch_needs_the_blocks_it_names(order, seed, step, ranks, share):
    batch = ranks * share
    ids = order.sample_ids(seed, step * batch, batch)
    for rank in range(ranks):
        part = slice(rank * share, (rank + 1) * share)
        now, _ = order.current_and_next_blocks(seed, step * batch, batch, part)
        assert set(order.shard_of(ids[part])) <= {shard for block in now for shard in block.shards}


@settings(deadline=None)
@given(samplers, seeds, st.integers(0, 20), st.integers(1, 4))
def test_the_next_block_was_announced(order, seed, step, share):
    """A process never needs a block that the batch before neither used nor announced."""
    batch = order.shard_groups * share
    for part in (slice(0, share), slice(batch - share, batch)):
        now, following = order.current_and_next_blocks(seed, step * batch, batch, part)
        later, _ = order.current_and_next_blocks(seed, (step + 1) * batch, batch, part)
        if len(later) == 1:  # else a batch is larger than a block
            assert later[0] in (*now, *following)


@settings(deadline=None)
@given(samplers, seeds, st.integers(0, 400))
def test_no_memory_between_calls(order, seed, position):
    fresh = ShardSampler(order.sizes.tolist(), shuffle_shards=1, shard_groups=order.shard_groups)
    fresh.num_blocks = order.num_blocks
    order.sample_ids(seed, 7, 31)
    assert np.array_equal(
        order.sample_ids(seed, position, 20), fresh.sample_ids(seed, position, 20)
    )


def test_a_group_reads_its_share_of_the_shards():
    order = ShardSampler([100] * 16, shuffle_shards=1, shard_groups=4)
    read = [set(), set()]
    for step in range(100):
        for rank in (0, 1):
            now, _ = order.current_and_next_blocks(0, step * 16, 16, slice(8 * rank, 8 * rank + 8))
            read[rank] |= {shard for block in now for shard in block.shards}
    assert sorted(map(len, read)) == [8, 8] and not read[0] & read[1]


def test_blocks_are_about_as_large():
    assert [
        len(block.shards)
        for block in ShardSampler([5] * 9, shuffle_shards=4, shard_groups=1).epoch_layout(0, 0)[0]
    ] == [3, 3, 3]


def test_order_is_what_it_was():
    """A resumed run depends on this order: a change breaks every unfinished run."""
    order = ShardSampler([3, 2, 4], shuffle_shards=2, shard_groups=2)
    assert order.sample_ids(0, 0, 9).tolist() == [2, 0, 1, 6, 8, 7, 5, 4, 3]


def test_bad_requests_are_refused():
    for sizes, shards, count in (([], 1, 1), ([3, 0], 1, 1), ([3], 0, 1), ([3], 1, 0)):
        with pytest.raises(ValueError):
            ShardSampler(sizes, shuffle_shards=shards, shard_groups=count)
