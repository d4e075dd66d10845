"""A ridge probe from slots to positions: turns an error in slots into a distance in the world, the same way for every method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.data.manifest import Manifest
from cjepa_dist.data.shards import read_split

ROWS = 200_000


@dataclass
class Probe:
    """position = slot @ weight + bias; weight (D, 2), bias (2,), float32. `rmse` is its error where it was fitted, world units."""

    weight: Tensor
    bias: Tensor
    rmse: float

    def __call__(self, slots: Tensor) -> Tensor:
        """(..., D) -> (..., 2), world units."""
        return slots @ self.weight + self.bias


def fit_probe(data: str | Path, split: str, *, videos: int = 200, ridge: float = 1e-3, seed: int = 0) -> Probe | None:
    """Fit on the slots that hold an object in view, at most 200,000 of them, of the first `videos` of a split; None without truth.

    `ridge` is relative to the slots' mean variance. Float64 inside: slots may be nearly collinear.
    """
    slots, positions = [], []
    for sample in read_split(data, split, ("slots.npy", "truth.npz"), videos=min(videos, Manifest.load(data).count(split))):
        if sample.truth is None or sample.slots is None:
            return None
        frames = len(sample.slots)
        seen = sample.truth["present"][:frames]
        slots.append(sample.slots[seen].astype(np.float32))
        positions.append(sample.truth["position"][:frames][seen])
    x, y = np.concatenate(slots), np.concatenate(positions)
    if not len(x):
        return None
    chosen = np.random.default_rng(seed).permutation(len(x))[:ROWS]
    x64, y64 = torch.from_numpy(x[chosen]).double(), torch.from_numpy(y[chosen]).double()
    centre_x, centre_y = x64.mean(0), y64.mean(0)
    x64, y64 = x64 - centre_x, y64 - centre_y
    gram = x64.T @ x64
    gram += torch.eye(len(gram), dtype=gram.dtype) * (ridge * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, x64.T @ y64)
    rmse = (x64 @ weight - y64).square().sum(-1).mean().sqrt().item()
    return Probe(weight.float(), (centre_y - centre_x @ weight).float(), rmse)
