"""Batches of this rank, one ahead of the step that uses them; in host memory (for a GPU in what it copies from by itself).

The position is one integer, step * global_batch_size; the ids of a global batch come from it alone, so nothing here has state to save.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from cjepa_dist.config import schema
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.collectives import all_reduce

Batch = dict[str, torch.Tensor]


class Dataset(Protocol):
    """A split that can be read at any ids."""

    def __len__(self) -> int: ...
    def order(self, seed: int, position: int, count: int) -> np.ndarray: ...
    def ready(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray: ...
    def gather(self, ids: np.ndarray, sample: np.ndarray) -> Batch: ...
    def names(self, ids: np.ndarray) -> list[str]: ...
    def counts(self) -> dict[str, float]: ...


class PrefetchingLoader:
    """Iterates over (step, list of micro-batches) from `start` to `stop`; `waited` is the time spent waiting, in seconds."""

    def __init__(
        self,
        source: Dataset,
        *,
        seed: int,
        start: int,
        stop: int,
        global_batch_size: int,
        accumulation: int,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.source, self.seed, self.range = source, seed, range(start, stop)
        self.global_batch_size, self.accumulation, self.rank, self.world, self.device = (
            global_batch_size,
            accumulation,
            rank,
            world,
            device,
        )
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        with ThreadPoolExecutor(1) as pool:
            coming: Future[list[Batch]] | None = (
                pool.submit(self.read, self.range.start) if self.range else None
            )
            for step in self.range:
                assert coming is not None
                began = time.perf_counter()
                batches = coming.result()
                self.waited += time.perf_counter() - began
                coming = pool.submit(self.read, step + 1) if step + 1 < self.range.stop else None
                yield step, batches

    def read(self, step: int) -> list[Batch]:
        position = step * self.global_batch_size
        ids = self.source.order(self.seed, position, self.global_batch_size)
        share = self.global_batch_size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        sample = position + np.arange(self.global_batch_size, dtype=np.int64)
        ids = self.source.ready(self.seed, position, ids, mine)
        parts = zip(ids.reshape(self.accumulation, -1), sample[mine].reshape(self.accumulation, -1))
        batches = [self.source.gather(i, s) for i, s in parts]
        return (
            [{name: pin_memory(value) for name, value in b.items()} for b in batches]
            if self.device.type == "cuda"
            else batches
        )

    def counts(self) -> dict[str, float]:
        """What reading cost so far: `read_mb` of all ranks, of the one with the least and the one with the most. All ranks call it."""
        counts = self.source.counts()
        if "read_mb" in counts:
            each = self.read_by_rank(counts["read_mb"])
            counts |= {"read_mb": sum(each), "read_mb_least": min(each), "read_mb_most": max(each)}
        return counts

    def describe(self) -> str:
        """What each rank has read, for the end of a run; empty where nothing is read beside the steps. All ranks call it."""
        counts = self.source.counts()
        if "read_mb" not in counts:
            return ""
        each = ", ".join(f"{value:.1f}" for value in self.read_by_rank(counts["read_mb"]))
        return f"read by rank {', '.join(map(str, range(self.world)))}: {each} MB"

    def read_by_rank(self, mine: float) -> list[float]:
        table = torch.zeros(self.world, device=self.device)
        table[self.rank] = mine
        return all_reduce(table).tolist()


def pin_memory(value: torch.Tensor) -> torch.Tensor:
    """In memory that a GPU copies from by itself; what is on the GPU stays there."""
    return value.pin_memory() if value.is_cpu else value


def check_batch_divides(config: TrainConfig, world: int) -> None:
    loop = config.loop
    parts = world * loop.gradient_accumulation
    if loop.global_batch_size % parts:
        raise UserError(
            f"loop.global_batch_size={loop.global_batch_size} is not divisible by {world} processes x loop.gradient_accumulation={loop.gradient_accumulation}"
        )
    if isinstance(config, schema.TrainWorldModel) and (fraction := config.ctt.fraction) < 1:
        share = fraction * loop.global_batch_size / parts
        if share < 1 or abs(share - round(share)) > 1e-6:
            raise UserError(
                f"ctt.fraction={fraction} of the {loop.global_batch_size // parts} windows of a pass is {share:g}: take a fraction that gives a "
                "whole number, so that the windows chosen do not depend on the number of processes"
            )
