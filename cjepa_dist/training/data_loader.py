"""Batches of this rank, read one step ahead by a thread.

    step ──> position = step * global_batch_size ──sample_ids──> ids of the global batch
         ──> this rank's part ──get_batch──> one batch for each pass (gradient accumulation)

The ids of a global batch come from the position alone, so nothing here has state to save. Batches
stay in host memory; for a GPU in pinned memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from cjepa_dist.data.dataset import Batch, Dataset
from cjepa_dist.runtime.collectives import all_reduce


class PrefetchingLoader:
    """Iterates over (step, batches) from `start` to `stop`.

    `waited` is the time that steps waited for a batch, in seconds.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        start: int,
        stop: int,
        global_batch_size: int,
        gradient_accumulation: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.seed, self.range = dataset, seed, range(start, stop)
        self.global_batch_size, self.passes = global_batch_size, gradient_accumulation
        self.rank, self.world_size, self.device = rank, world_size, device
        self.waited = 0.0

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        if not self.range:
            return
        with ThreadPoolExecutor(1) as pool:
            pending: Future[list[Batch]] = pool.submit(self.read, self.range.start)
            for step in self.range:
                began = time.perf_counter()
                batches = pending.result()
                self.waited += time.perf_counter() - began
                if step + 1 < self.range.stop:
                    pending = pool.submit(self.read, step + 1)
                yield step, batches

    def read(self, step: int) -> list[Batch]:
        """This rank's batches of a step."""
        size = self.global_batch_size
        position, share = step * size, size // self.world_size
        own = slice(self.rank * share, (self.rank + 1) * share)
        ids = self.dataset.sample_ids(self.seed, position, size)
        ids = self.dataset.prepare(self.seed, position, ids, own)
        sample = (position + np.arange(size, dtype=np.int64))[own]
        passes = zip(ids.reshape(self.passes, -1), sample.reshape(self.passes, -1))
        batches = [self.dataset.get_batch(*part) for part in passes]
        if self.device.type != "cuda":
            return batches
        return [{name: pin_memory(value) for name, value in b.items()} for b in batches]

    def read_statistics(self) -> dict[str, float]:
        """What reading cost so far; all ranks call it.

        `read_mb` of all ranks, and of the rank with the least and the most.
        """
        found = self.dataset.read_statistics()
        if "read_mb" in found:
            each = self.read_by_rank(found["read_mb"])
            found |= {"read_mb": sum(each), "read_mb_min": min(each), "read_mb_max": max(each)}
        return found

    def describe(self) -> str:
        """A line for the end of a run, what each rank has read; "" for data in memory.

        All ranks call it.
        """
        found = self.dataset.read_statistics()
        if "read_mb" not in found:
            return ""
        each = ", ".join(f"{value:.1f}" for value in self.read_by_rank(found["read_mb"]))
        return f"read by rank {', '.join(map(str, range(self.world_size)))}: {each} MB"

    def read_by_rank(self, own: float) -> list[float]:
        table = torch.zeros(self.world_size, device=self.device)
        table[self.rank] = own
        return all_reduce(table).tolist()


def pin_memory(value: torch.Tensor) -> torch.Tensor:
    """In memory that a GPU copies from by itself; what is on the GPU stays there."""
    return value.pin_memory() if value.is_cpu else value
