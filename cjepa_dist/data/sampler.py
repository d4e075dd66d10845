"""The order of samples: a function of the seed and of one integer, the position.

The position is the number of samples that all processes have seen so far.

    position ──> (epoch, place in it) ──permutation of the epoch──> sample id

    rank r of R at step n:  sample_ids(seed, n * B + r * B / R, B / R, length)

Epochs follow each other without a gap: a batch that reaches the end of one continues in the next,
so no remainder is dropped. The number of processes appears nowhere, so a run may be resumed with
another, and skipping ahead costs nothing.
"""

from __future__ import annotations

import functools

import numpy as np

UINT64_MASK = (1 << 64) - 1


def sample_ids(seed: int, position: int, count: int, length: int) -> np.ndarray:
    """Ids (count,) int64 in [0, length) of the samples position .. position + count - 1."""
    if length < 1 or position < 0 or count < 0:
        raise ValueError(
            "sample_ids needs length >= 1, position >= 0, count >= 0; "
            f"got {length}, {position}, {count}"
        )
    ids = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, place = divmod(position + done, length)
        part = epoch_permutation(seed, epoch, length)[place : place + count - done]
        ids[done : done + len(part)] = part
        done += len(part)
    return ids


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation (length,) int64 of an epoch, read-only; a million ids take about 0.1 s."""
    # We sort raw counter output and do not call Generator.permutation: numpy keeps the former the
    # same in all versions, but not the latter.
    key = np.array([seed & UINT64_MASK, epoch & UINT64_MASK], np.uint64)
    keys = np.random.Philox(key=key).random_raw(length)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order
