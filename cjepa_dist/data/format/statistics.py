"""Mean and standard deviation of a data set's slots, and the error of storing them.

    slots of a video ──slot_statistics──> RunningStatistics ──merge──> those of a shard
        ──ShardEntry──> merge, in order ──> mean (D), std (D), conversion error

Every shard keeps its own statistics. So parts can be merged, damaged shards left out and stopped
writes resumed without reading the slots again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest, ShardEntry


class RunningStatistics:
    """Running statistics of D numbers over a stream of (..., D), in float64, numerically stable.

    `mean` and `squared_deviations` (their sum) are (D,). Of the conversion to the stored type:
    `squared_error`, a sum, and `max_error`.
    """

    def __init__(
        self,
        count: int = 0,
        mean: np.ndarray | None = None,
        squared_deviations: np.ndarray | None = None,
        squared_error: float = 0.0,
        max_error: float = 0.0,
    ) -> None:
        self.count, self.squared_error, self.max_error = count, squared_error, max_error
        self.mean, self.squared_deviations = (
            np.zeros(1) if value is None else value for value in (mean, squared_deviations)
        )

    def merge(self, other: RunningStatistics) -> None:
        """Add the statistics of what follows."""
        total, shift = self.count + other.count, other.mean - self.mean
        self.squared_deviations = (
            self.squared_deviations
            + other.squared_deviations
            + shift**2 * (self.count * other.count / total)
        )
        self.mean = self.mean + shift * (other.count / total)
        self.count, self.squared_error, self.max_error = (
            total,
            self.squared_error + other.squared_error,
            max(self.max_error, other.max_error),
        )

    def std(self) -> np.ndarray:
        """(D,) standard deviation."""
        return np.sqrt(self.squared_deviations / self.count)

    def describe_conversion_error(self) -> str:
        """The error of the conversion for messages, in units of the values' root mean square."""
        rms = float(np.sqrt(np.mean(self.squared_deviations / self.count + self.mean**2))) or 1.0
        size = self.count * len(self.mean)
        return (
            f"RMS error {(self.squared_error / size) ** 0.5 / rms:.2e}, "
            f"largest {self.max_error / rms:.2e}, in units of the values' RMS {rms:.3g}"
        )


def slot_statistics(slots: np.ndarray, original: np.ndarray | None = None) -> RunningStatistics:
    """Statistics of `slots` (..., D) as stored.

    `original`: the slots before the conversion; None: they were not converted.
    """
    kept, squared_error, max_error = to_float32(slots), 0.0, 0.0
    if original is not None:
        errors = (kept - original).reshape(len(kept), -1)
        # No BLAS: its sums depend on the number of threads.
        squared_error = float(np.einsum("ti,ti->t", errors, errors).sum(dtype=np.float64))
        max_error = max(float(errors.max()), -float(errors.min()))
    values = kept.reshape(-1, kept.shape[-1]).astype(np.float64)
    mean = values.mean(0)
    values -= mean
    return RunningStatistics(
        len(values), mean, np.einsum("nd,nd->d", values, values), squared_error, max_error
    )


def merge_shard_statistics(entries: Iterable[ShardEntry], rows: int) -> RunningStatistics | None:
    """Merged statistics of shards; a video has `rows` (frames x slots) rows. None for no shard."""
    total = RunningStatistics()
    for entry in entries:
        total.merge(
            RunningStatistics(
                entry.samples * rows,
                np.array(entry.mean),
                np.array(entry.squared_deviations),
                *entry.conversion_error,
            )
        )
    return total if total.count else None


def set_statistics(manifest: Manifest) -> None:
    """Set a manifest's `mean` and `std` from the shards of its train split, in their order."""
    train = merge_shard_statistics(
        manifest.splits.get("train", []), manifest.frames * manifest.slots
    )
    manifest.mean, manifest.std = (
        (train.mean.tolist(), train.std().tolist()) if train else (None, None)
    )
