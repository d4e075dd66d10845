"""The order in which a split is read shard by shard.

Like `data/sampler.py` a function of the seed and of one integer, the position.

    epoch:  shards shuffled ──> blocks of a few shards ──> samples shuffled within each block
            all blocks in a row:  |─── group 0 ───|─── group 1 ───| ...
            position P is the next sample of group P % shard_groups

A global batch is ordered by group, so a process whose part of the batch is group 3 reads only the
shards of group 3. Positions run on from epoch to epoch: each sample is in each epoch once, whether
or not batches divide epochs, and the number of processes appears nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cjepa_dist.data.sampler import UINT64_MASK, epoch_permutation


class ShardBlock(NamedTuple):
    """Shards whose samples are shuffled together: places [first, first + samples) of an epoch."""

    epoch: int
    number: int
    first: int
    samples: int
    shards: tuple[int, ...]


class ShardSampler:
    """The order of a split whose shard s holds `sizes[s]` samples, with ids from `first_id[s]` on.

    A block has `shuffle_shards` shards or a few less: all blocks are about as large. An epoch is
    cut into `shard_groups` groups that are read at the same time.
    """

    def __init__(self, sizes: Sequence[int], *, shuffle_shards: int, shard_groups: int) -> None:
        if min(shuffle_shards, shard_groups, len(sizes), *sizes) < 1:
            raise ValueError(
                f"shuffle_shards={shuffle_shards}, shard_groups={shard_groups} and the samples of "
                f"{len(sizes)} shards must be at least 1"
            )
        self.sizes, self.shard_groups = np.array(sizes, np.int64), shard_groups
        self.first_id, self.length = np.cumsum(self.sizes) - self.sizes, int(self.sizes.sum())
        self.num_blocks = -(-len(sizes) // shuffle_shards)
        self.epoch_layout = lru_cache(8)(self._epoch_layout)
        self.block_permutation = lru_cache(4 * shard_groups)(self._block_permutation)

    def sample_ids(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the samples position .. position + count - 1.

        They are in the order of the batch: by group, within it by block and shard.
        """
        ids = np.empty(count, np.int64)
        _, places, blocks = self.locate(seed, position, count)
        for begin, end in equal_ranges(blocks):
            block, rows = blocks[begin], slice(begin, end)
            part = self.block_permutation(seed, block)[places[rows] - block.first]
            ids[rows] = part[np.argsort(self.shard_of(part), kind="stable")]
        return ids

    def current_and_next_blocks(
        self, seed: int, position: int, count: int, part: slice
    ) -> tuple[list[ShardBlock], list[ShardBlock]]:
        """The block of each sample of a part of a batch, and the block each of its groups reads
        next."""
        positions, places, blocks = self.locate(seed, position, count)
        positions, places, blocks = positions[part], places[part], blocks[part]
        groups, following = positions % self.shard_groups, []
        for row in np.flatnonzero(np.diff(groups, append=-1)):  # the last sample of each group
            block, group_starts = blocks[row], self.epoch_layout(seed, blocks[row].epoch)[1]
            block_end = min(block.first + block.samples, group_starts[groups[row] + 1])
            ahead = block_end - places[row]
            next_position = int(positions[row] + ahead * self.shard_groups)
            following.append(self.locate(seed, next_position, 1)[2][0])
        return blocks, following

    def shard_of(self, ids: np.ndarray) -> np.ndarray:
        """The shard of each id."""
        return np.searchsorted(self.first_id, ids, side="right") - 1

    def locate(
        self, seed: int, position: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, list[ShardBlock]]:
        """Of each sample of the batch, in the order of the batch: its position, its place in its
        epoch, and the block of that place."""
        positions = np.arange(position, position + count, dtype=np.int64)
        positions = positions[np.argsort(positions % self.shard_groups, kind="stable")]
        epochs, groups = positions // self.length, positions % self.shard_groups
        places, blocks = np.empty_like(positions), np.empty(count, object)
        for epoch in range(position // self.length, (position + count - 1) // self.length + 1):
            epoch_blocks, group_starts = self.epoch_layout(seed, epoch)
            rows = np.flatnonzero(epochs == epoch)
            places[rows] = (
                group_starts[groups[rows]]
                + self.positions_before(positions[rows], groups[rows])
                - self.positions_before(epoch * self.length, groups[rows])
            )
            firsts = [block.first for block in epoch_blocks]
            numbers = np.searchsorted(firsts, places[rows], side="right") - 1
            for row, number in zip(rows.tolist(), numbers.tolist()):
                blocks[row] = epoch_blocks[number]
        return positions, places, list(blocks)

    def positions_before(self, position: np.ndarray | int, group: np.ndarray) -> np.ndarray:
        """How many positions below `position` belong to `group`."""
        return (position - group + self.shard_groups - 1) // self.shard_groups

    def _epoch_layout(self, seed: int, epoch: int) -> tuple[list[ShardBlock], np.ndarray]:
        """The blocks of an epoch, and the place where each of its groups begins (groups + 1,)."""
        blocks, first = [], 0
        shuffled = epoch_permutation(seed, epoch, len(self.sizes))
        for number, shards in enumerate(np.array_split(shuffled, self.num_blocks)):
            samples = int(self.sizes[shards].sum())
            blocks.append(ShardBlock(epoch, number, first, samples, tuple(shards.tolist())))
            first += samples
        groups = np.arange(self.shard_groups)
        lengths = self.positions_before((epoch + 1) * self.length, groups) - self.positions_before(
            epoch * self.length, groups
        )
        return blocks, np.concatenate([[0], np.cumsum(lengths)])

    def _block_permutation(self, seed: int, block: ShardBlock) -> np.ndarray:
        """The shuffled ids (samples,) of a block."""
        # As `epoch_permutation`, with other counters: those begin at 0.
        key = np.array([seed & UINT64_MASK, block.epoch & UINT64_MASK], np.uint64)
        counter = np.array([0, 0, 0, block.number + 1], np.uint64)
        keys = np.random.Philox(key=key, counter=counter).random_raw(block.samples)
        ids = np.concatenate(
            [np.arange(self.first_id[s], self.first_id[s] + self.sizes[s]) for s in block.shards]
        )
        return ids[np.argsort(keys, kind="stable")]


def equal_ranges(values: list[Any]) -> list[tuple[int, int]]:
    """[begin, end) of each run of equal values."""
    ends = [row for row in range(1, len(values)) if values[row] != values[row - 1]] + [len(values)]
    return list(zip([0, *ends], ends))
