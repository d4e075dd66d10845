"""Weights of loss terms over a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cjepa_dist.config.schema import TermConfig


@dataclass(frozen=True)
class TermWeights:
    """Weights of the loss terms that count at a point of the run, by name: numbers, or () on the device where a step is recorded."""

    values: Mapping[str, float | Tensor]

    def chosen(self, names: Iterable[str]) -> dict[str, float | Tensor]:
        return {name: self.values[name] for name in names if name in self.values}


def ramp(term: TermConfig, progress: float) -> float:
    """Weight of a term at a point of the run: 0 before `start`, full after `ramp` more."""
    if not term.weight or progress < term.start:
        return 0.0
    return term.weight * (min(1.0, (progress - term.start) / term.ramp) if term.ramp else 1.0)
