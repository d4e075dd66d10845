"""Mean and spread of a data set's slots, and what storing them cost, put together from its shards.

    slots of a video ──add──> Moments of a shard ──ShardEntry──> merge, in order ──> mean (D), std (D), conversion error

Every shard keeps its own, so parts can be merged, damaged shards left out and stopped writes resumed without reading a slot again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cjepa_dist.data.manifest import Manifest, ShardEntry


class Moments:
    """Running mean and centred squares of each of D numbers over a stream of (..., D), in float64, stable; errors of the conversion."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)
        self.lost, self.largest = 0.0, 0.0

    def add(self, kept: np.ndarray, exact: np.ndarray | None = None) -> None:
        """`kept` (..., D) float32 as it will be read, `exact` as it was given; None: nothing was lost."""
        if exact is not None:
            errors = (kept - exact).reshape(len(kept), -1)
            self.lost += float(np.einsum("ti,ti->t", errors, errors).sum(dtype=np.float64))  # no BLAS, whose sums depend on its threads
            self.largest = max(self.largest, float(errors.max()), -float(errors.min()))
        values = kept.reshape(-1, kept.shape[-1]).astype(np.float64)
        mean = values.mean(0)
        values -= mean
        self.merge(len(values), mean, np.einsum("nd,nd->d", values, values))

    def merge(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def std(self) -> np.ndarray:
        """(D,) standard deviation."""
        return np.sqrt(self.squares / self.count)

    def conversion(self) -> str:
        """The error of the conversion in words, relative to the root mean square of all values."""
        rms = float(np.sqrt(np.mean(self.squares / self.count + self.mean**2))) or 1.0
        size = self.count * len(self.mean)
        return f"RMS error {(self.lost / size) ** 0.5 / rms:.2e}, largest {self.largest / rms:.2e}, in units of the values' RMS {rms:.3g}"


def of_shards(entries: Iterable[ShardEntry], rows: int) -> Moments | None:
    """Moments over shards of videos with `rows` (frames x slots) rows each; None without any, or if a shard does not know its own."""
    total = Moments()
    for entry in entries:
        if not entry.mean:
            return None
        total.merge(entry.samples * rows, np.array(entry.mean), np.array(entry.squares))
        total.lost, total.largest = total.lost + entry.lost[0], max(total.largest, entry.lost[1])
    return total if total.count else None


def set_moments(manifest: Manifest) -> None:
    """Set a manifest's `mean` and `std` to those of the shards of its train split, in their order."""
    train = of_shards(manifest.splits.get("train", []), manifest.frames * manifest.slots)
    manifest.mean, manifest.std = (train.mean.tolist(), train.std().tolist()) if train else (None, None)
