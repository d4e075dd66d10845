"""A probe from slots to positions: turns an error in slots into a distance in the world, the same way for every method.

    slot ──(1, slot, ReLU of 512 frozen random combinations)──ridge──> position

The random features are for objects that the edge of the view cuts: their slots are a mix with the empty one, so that position is no linear
function of them (a linear probe errs there by more than what is to be measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split

ROWS, UNITS = 60_000, 512


@dataclass
class Probe:
    """position = lifted slot @ weight; centre (D,), mix (D, UNITS), offset (UNITS,), weight (1 + D + UNITS, 2), float32.

    `rmse` is its error on a tenth of the objects that were not used to fit it, world units.
    """

    centre: Tensor
    mix: Tensor
    offset: Tensor
    weight: Tensor
    rmse: float = float("nan")

    def __call__(self, slots: Tensor) -> Tensor:
        """(..., D) -> (..., 2), world units."""
        return self.lift(slots) @ self.weight

    def lift(self, slots: Tensor) -> Tensor:
        """(..., D) -> (..., 1 + D + UNITS)."""
        x = slots - self.centre
        return torch.cat(
            [torch.ones_like(x[..., :1]), x, torch.relu(x @ self.mix + self.offset)], dim=-1
        )


def fit_probe(
    data: str | Path, split: str, *, videos: int = 200, ridge: float = 1e-5, seed: int = 0
) -> Probe | None:
    """Fit on the slots that hold an object in view, at most 60,000 of them, of the first `videos` of a split; None without truth or match.

    `ridge` is relative to the mean square of the lifted slots. Float64 inside: slots may be nearly collinear.
    """
    slots, positions = [], []
    for sample in read_split(
        data,
        split,
        ("slots.npy", "truth.npz", "match.npz"),
        videos=min(videos, Manifest.load(data).count(split)),
    ):
        known = sample.truth if sample.truth is not None else sample.match
        if known is None or sample.slots is None:
            return None
        frames = len(sample.slots)
        seen = known["present"][:frames]
        slots.append(widen(sample.slots[seen]))
        positions.append(known["position"][:frames][seen])
    x, y = np.concatenate(slots), np.concatenate(positions)
    if not len(x):
        return None
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x))[:ROWS]
    x_all, y_all = torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]).double()
    mix = torch.from_numpy(rng.standard_normal((x.shape[1], UNITS)) / np.sqrt(x.shape[1])).float()
    offset = torch.from_numpy(rng.standard_normal(UNITS)).float()
    probe = Probe(x_all.mean(0), mix, offset, torch.zeros(1 + x.shape[1] + UNITS, 2))
    lifted = probe.lift(x_all).double()
    held = max(1, len(lifted) // 10)
    fit, target = lifted[held:], y_all[held:]
    gram = fit.T @ fit
    gram += torch.eye(len(gram), dtype=gram.dtype) * (ridge * gram.diagonal().mean() + 1e-12)
    probe.weight = torch.linalg.solve(gram, fit.T @ target).float()
    probe.rmse = (probe(x_all[:held]).double() - y_all[:held]).square().sum(-1).mean().sqrt().item()
    return probe
