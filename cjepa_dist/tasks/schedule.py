"""Weights of loss terms as functions of the progress of a run, a number in [0, 1)."""

from __future__ import annotations

from cjepa_dist.config.schema import TermConfig


def ramp(term: TermConfig, progress: float) -> float:
    """Weight of a term at a point of the run: 0 before `start`, full after `ramp` more."""
    if not term.weight or progress < term.start:
        return 0.0
    return term.weight * (min(1.0, (progress - term.start) / term.ramp) if term.ramp else 1.0)
