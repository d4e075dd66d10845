"""A probe from slots to positions, which turns errors of slots into distances in the world.

    slot ──(1, slot, ReLU of 512 fixed random projections)──ridge regression──> position

It is the same for every method. The random features are needed for objects at the edge of the view:
their slots are a mixture with the empty slot, so that their position is not a linear function of
the slot. The error of a linear probe there is larger than the errors to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split

MAX_SLOTS, RANDOM_FEATURES = 60_000, 512


@dataclass
class PositionProbe:
    """position = features(slot) @ weight, float32; R = RANDOM_FEATURES.

    `rmse` is its error on the tenth of the objects that it is not fitted on, world units.
    """

    mean: Tensor  # (D,)
    projection: Tensor  # (D, R)
    offset: Tensor  # (R,)
    weight: Tensor  # (1 + D + R, 2)
    rmse: float = float("nan")

    def __call__(self, slots: Tensor) -> Tensor:
        """(..., D) -> (..., 2), world units."""
        return self.features(slots) @ self.weight

    def features(self, slots: Tensor) -> Tensor:
        """(..., D) -> (..., 1 + D + R)."""
        x = slots - self.mean
        return torch.cat(
            [torch.ones_like(x[..., :1]), x, torch.relu(x @ self.projection + self.offset)], dim=-1
        )


def fit_position_probe(
    data: str | Path, split: str, *, videos: int = 200, ridge: float = 1e-5, seed: int = 0
) -> PositionProbe | None:
    """Fit on at most MAX_SLOTS slots with an object in view, of the first `videos` of a split.

    None if the shards have no positions (truth.npz or match.npz). `ridge` is relative to the mean
    square of the features. Computed in float64, because slots may be nearly collinear.
    """
    slots, positions = [], []
    count = min(videos, Manifest.load(data).count(split))
    for sample in read_split(data, split, ("slots.npy", "truth.npz", "match.npz"), videos=count):
        known = sample.truth if sample.truth is not None else sample.match
        if known is None or sample.slots is None:
            return None
        frames = len(sample.slots)
        present = known["present"][:frames]
        slots.append(to_float32(sample.slots[present]))
        positions.append(known["position"][:frames][present])
    x, y = np.concatenate(slots), np.concatenate(positions)
    if not len(x):
        return None
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x))[:MAX_SLOTS]
    x_all, y_all = torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]).double()
    size = x.shape[1]
    projection = rng.standard_normal((size, RANDOM_FEATURES)) / np.sqrt(size)
    offset = rng.standard_normal(RANDOM_FEATURES)
    probe = PositionProbe(
        mean=x_all.mean(0),
        projection=torch.from_numpy(projection).float(),
        offset=torch.from_numpy(offset).float(),
        weight=torch.zeros(1 + size + RANDOM_FEATURES, 2),
    )
    features = probe.features(x_all).double()
    held_out = max(1, len(features) // 10)
    fit, target = features[held_out:], y_all[held_out:]
    gram = fit.T @ fit
    gram += torch.eye(len(gram), dtype=gram.dtype) * (ridge * gram.diagonal().mean() + 1e-12)
    probe.weight = torch.linalg.solve(gram, fit.T @ target).float()
    error = probe(x_all[:held_out]).double() - y_all[:held_out]
    probe.rmse = error.square().sum(-1).mean().sqrt().item()
    return probe
