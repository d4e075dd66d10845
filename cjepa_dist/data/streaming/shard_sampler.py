"""The order in which a split is read shard by shard: like `order.py` a function of the seed and of one integer, the position.

    epoch:  shards permuted ──> blocks of a few ──> windows permuted within each block ──> one line of N windows
    line:   |─── lane 0 ───|─── lane 1 ───| ...     position P is the next window of lane P % lanes

A global batch stands by lane, so a process whose part of it is lane 3 reads the shards of lane 3 alone. Positions go on from epoch to
epoch without a seam: each window is in each epoch once, whatever divides what, and the number of processes appears nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cjepa_dist.data.sampler import MASK, epoch_permutation


class ShardBlock(NamedTuple):
    """Shards whose windows are mixed with each other: the windows [first, first + windows) of an epoch's line."""

    epoch: int
    number: int
    first: int
    windows: int
    shards: tuple[int, ...]


class ShardSampler:
    """The canonical order of a split whose shard s holds `sizes[s]` windows, with ids from `first[s]` on.

    Blocks are of `shards` shards, or of a few less: all are about as large. `lanes` stretches of the line are read beside each other.
    """

    def __init__(self, sizes: Sequence[int], *, shards: int, lanes: int) -> None:
        if min(shards, lanes, len(sizes), *sizes) < 1:
            raise ValueError(
                f"shards={shards}, lanes={lanes} and the windows of {len(sizes)} shards must be at least 1"
            )
        self.sizes, self.lanes = np.array(sizes, np.int64), lanes
        self.first, self.length = np.cumsum(self.sizes) - self.sizes, int(self.sizes.sum())
        self.groups = -(-len(sizes) // shards)
        self.line, self.permutation = (
            lru_cache(8)(self._line),
            lru_cache(4 * lanes)(self._permutation),
        )

    def order(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the samples position .. position + count - 1, as the batch stands: by lane, in it by block and shard."""
        ids = np.empty(count, np.int64)
        _, places, blocks = self.locate(seed, position, count)
        for begin, end in stretches(blocks):
            block, rows = blocks[begin], slice(begin, end)
            part = self.permutation(seed, block)[places[rows] - block.first]
            ids[rows] = part[np.argsort(self.shard(part), kind="stable")]
        return ids

    def blocks(
        self, seed: int, position: int, count: int, part: slice
    ) -> tuple[list[ShardBlock], list[ShardBlock]]:
        """The block of each sample of a part of that batch, and the one that each of its lanes reads next."""
        samples, places, blocks = self.locate(seed, position, count)
        samples, places, blocks, following = samples[part], places[part], blocks[part], []
        lanes = samples % self.lanes
        for row in np.flatnonzero(np.diff(lanes, append=-1)):  # the last sample of each lane
            block, cuts = blocks[row], self.line(seed, blocks[row].epoch)[1]
            left = min(block.first + block.windows, cuts[lanes[row] + 1]) - places[row]
            following.append(self.locate(seed, int(samples[row] + left * self.lanes), 1)[2][0])
        return blocks, following

    def shard(self, ids: np.ndarray) -> np.ndarray:
        """The shard of each id."""
        return np.searchsorted(self.first, ids, side="right") - 1

    def locate(
        self, seed: int, position: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, list[ShardBlock]]:
        """Of each sample of the batch, as it stands: its position, its place in its epoch's line, the block of that place."""
        samples = np.arange(position, position + count, dtype=np.int64)
        samples = samples[np.argsort(samples % self.lanes, kind="stable")]
        epochs, lanes = samples // self.length, samples % self.lanes
        places, blocks = np.empty_like(samples), np.empty(count, object)
        for epoch in range(position // self.length, (position + count - 1) // self.length + 1):
            found, cuts = self.line(seed, epoch)
            rows = np.flatnonzero(epochs == epoch)
            places[rows] = (
                cuts[lanes[rows]]
                + self.before(samples[rows], lanes[rows])
                - self.before(epoch * self.length, lanes[rows])
            )
            at = np.searchsorted([block.first for block in found], places[rows], side="right") - 1
            for row, number in zip(rows.tolist(), at.tolist()):
                blocks[row] = found[number]
        return samples, places, list(blocks)

    def before(self, position: np.ndarray | int, lane: np.ndarray) -> np.ndarray:
        """How many positions below `position` belong to `lane`."""
        return (position - lane + self.lanes - 1) // self.lanes

    def _line(self, seed: int, epoch: int) -> tuple[list[ShardBlock], np.ndarray]:
        """The blocks of an epoch, and where its lanes begin (lanes + 1,)."""
        blocks, first = [], 0
        for number, shards in enumerate(
            np.array_split(epoch_permutation(seed, epoch, len(self.sizes)), self.groups)
        ):
            blocks.append(
                ShardBlock(
                    epoch, number, first, int(self.sizes[shards].sum()), tuple(shards.tolist())
                )
            )
            first += blocks[-1].windows
        lanes = np.arange(self.lanes)
        lengths = self.before((epoch + 1) * self.length, lanes) - self.before(
            epoch * self.length, lanes
        )
        return blocks, np.concatenate([[0], np.cumsum(lengths)])

    def _permutation(self, seed: int, block: ShardBlock) -> np.ndarray:
        """The ids (windows,) of a block, in the order of the line."""
        # As `epoch_order`, with other counters: those begin at 0.
        key, counter = (
            np.array([seed & MASK, block.epoch & MASK], np.uint64),
            np.array([0, 0, 0, block.number + 1], np.uint64),
        )
        keys = np.random.Philox(key=key, counter=counter).random_raw(block.windows)
        ids = np.concatenate(
            [np.arange(self.first[s], self.first[s] + self.sizes[s]) for s in block.shards]
        )
        return ids[np.argsort(keys, kind="stable")]


def stretches(values: list[Any]) -> list[tuple[int, int]]:
    """[begin, end) of each run of the same value."""
    ends = [row for row in range(1, len(values)) if values[row] != values[row - 1]] + [len(values)]
    return list(zip([0, *ends], ends))
