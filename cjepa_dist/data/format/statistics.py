"""Mean and spread of a data set's slots, and what storing them cost, put together from its shards.

    slots of a video ──measured──> Moments ──merge──> a shard's ──ShardEntry──> merge, in order ──> mean (D), std (D), conversion error

Every shard keeps its own, so parts can be merged, damaged shards left out and stopped writes resumed without reading a slot again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest, ShardEntry


class RunningStatistics:
    """Running mean and centred squares of each of D numbers over a stream of (..., D), in float64, stable; errors of the conversion."""

    def __init__(
        self,
        count: int = 0,
        mean: np.ndarray | None = None,
        squares: np.ndarray | None = None,
        lost: float = 0.0,
        largest: float = 0.0,
    ) -> None:
        self.count, self.lost, self.largest = count, lost, largest
        self.mean, self.squares = (
            np.zeros(1) if value is None else value for value in (mean, squares)
        )

    def merge(self, other: RunningStatistics) -> None:
        """Those of what comes next."""
        total, shift = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + shift**2 * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count, self.lost, self.largest = (
            total,
            self.lost + other.lost,
            max(self.largest, other.largest),
        )

    def std(self) -> np.ndarray:
        """(D,) standard deviation."""
        return np.sqrt(self.squares / self.count)

    def conversion(self) -> str:
        """The error of the conversion in words, relative to the root mean square of all values."""
        rms = float(np.sqrt(np.mean(self.squares / self.count + self.mean**2))) or 1.0
        size = self.count * len(self.mean)
        return f"RMS error {(self.lost / size) ** 0.5 / rms:.2e}, largest {self.largest / rms:.2e}, in units of the values' RMS {rms:.3g}"


def slot_statistics(slots: np.ndarray, given: np.ndarray | None = None) -> RunningStatistics:
    """Of `slots` (..., D) as stored, and of what storing them cost; `given` are the slots before, None: nothing was lost."""
    kept, lost, largest = widen(slots), 0.0, 0.0
    if given is not None:
        errors = (kept - given).reshape(len(kept), -1)
        lost = float(
            np.einsum("ti,ti->t", errors, errors).sum(dtype=np.float64)
        )  # no BLAS, whose sums depend on its threads
        largest = max(float(errors.max()), -float(errors.min()))
    values = kept.reshape(-1, kept.shape[-1]).astype(np.float64)
    mean = values.mean(0)
    values -= mean
    return RunningStatistics(
        len(values), mean, np.einsum("nd,nd->d", values, values), lost, largest
    )


def merge_shard_statistics(entries: Iterable[ShardEntry], rows: int) -> RunningStatistics | None:
    """Moments over shards of videos with `rows` (frames x slots) rows each; None without any, or if a shard does not know its own."""
    total = RunningStatistics()
    for entry in entries:
        if not entry.mean:
            return None
        total.merge(
            RunningStatistics(
                entry.samples * rows, np.array(entry.mean), np.array(entry.squares), *entry.lost
            )
        )
    return total if total.count else None


def set_statistics(manifest: Manifest) -> None:
    """Set a manifest's `mean` and `std` to those of the shards of its train split, in their order."""
    train = merge_shard_statistics(
        manifest.splits.get("train", []), manifest.frames * manifest.slots
    )
    manifest.mean, manifest.std = (
        (train.mean.tolist(), train.std().tolist()) if train else (None, None)
    )
