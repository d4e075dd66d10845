"""Where a run is in its data: one integer, the number of samples seen over all processes.

    position ──> (epoch, place) ──permutation of the epoch──> sample id

    rank r of R at step n:  window_ids(seed, n * B + r * B / R, B / R, length)

Epochs are joined without a seam: a batch that reaches the end of one goes on in the next, so there is no remainder to drop. The number
of processes appears nowhere, so a run may be resumed with another, and skipping ahead costs nothing.
"""

from __future__ import annotations

import functools

import numpy as np

MASK = (1 << 64) - 1


def sample_ids(seed: int, position: int, count: int, length: int) -> np.ndarray:
    """Ids (count,) int64 in [0, length) of samples position .. position + count - 1 of an endless run of shuffled epochs."""
    if length < 1 or position < 0 or count < 0:
        raise ValueError(
            f"window_ids needs length >= 1, position >= 0, count >= 0; got {length}, {position}, {count}"
        )
    ids = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, place = divmod(position + done, length)
        part = epoch_permutation(seed, epoch, length)[place : place + count - done]
        ids[done : done + len(part)] = part
        done += len(part)
    return ids


class ShuffledSampler:
    """The order of a source of `len(self)` samples that are all at hand; part of `training.feed.Source`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def order(self, seed: int, position: int, count: int) -> np.ndarray:
        """Ids (count,) of the global batch that begins at `position`."""
        return sample_ids(seed, position, count, len(self))

    def ready(self, seed: int, position: int, ids: np.ndarray, part: slice) -> np.ndarray:
        """The ids of a process's part of that batch, as `gather` can read them at once."""
        return ids[part]

    def counts(self) -> dict[str, float]:
        """What reading cost this process so far, for the line of metrics."""
        return {}


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation (length,) int64 of an epoch, read-only; a million take about a tenth of a second, and the last four are kept."""
    # Sorting raw counter output, not Generator.permutation: numpy keeps the former the same in all versions, the latter not.
    keys = np.random.Philox(key=np.array([seed & MASK, epoch & MASK], np.uint64)).random_raw(length)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order
