"""Datasets: splits that can be read at any ids. What the data loader asks of them.

position ──sample_ids──> ids of a global batch ──prepare──> ids of this process, ready to read
                                                             └──get_batch──> tensors
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from cjepa_dist.data.sampler import sample_ids

Batch = dict[str, torch.Tensor]


class Dataset(Protocol):
    """A split that can be read at any ids; `len()` is the number of samples in an epoch."""

    def __len__(self) -> int: ...

    def sample_ids(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the global batch that begins at `position`, the samples seen so far."""
        ...

    def prepare(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray:
        """Load what one process's part of that batch needs, and start loading what comes next.

        Returns the ids of the part that `get_batch` can read at once: ids[part], but for samples
        that cannot be read and are replaced.
        """
        ...

    def get_batch(self, ids: np.ndarray, sample: np.ndarray) -> Batch:
        """The samples `ids` (B,); `sample` (B,) is the index of each in the run, the key of all
        random draws for it."""
        ...

    def sample_names(self, ids: np.ndarray) -> list[str]:
        """A name of each sample, for messages."""
        ...

    def read_statistics(self) -> dict[str, float]:
        """What this process has read so far, for the line of metrics."""
        ...


class InMemoryDataset:
    """The part of `Dataset` that is the same for every split in memory."""

    def __len__(self) -> int:
        raise NotImplementedError

    def sample_ids(self, seed: int, position: int, count: int) -> np.ndarray:
        return sample_ids(seed, position, count, len(self))

    def prepare(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray:
        return ids[part]

    def read_statistics(self) -> dict[str, float]:
        return {}
