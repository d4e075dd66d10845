"""Counts the steps that were skipped because they were not finite, in RUN/skipped.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.runtime.collectives import all_reduce, is_main, world_size


class SkippedSteps:
    """The skipped steps of a run, `count` of them so far, of which `budget` are allowed."""

    def __init__(self, run_dir: Path, *, count: int, budget: int) -> None:
        self.path, self.count, self.budget = run_dir / "skipped.jsonl", count, budget
        self.count_at_start = count
        self.unread: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, finite: Tensor, loss: Tensor) -> None:
        """Add the `step`-th step, counted from 1; no value is read from the device."""
        self.unread.append((step, finite, loss.detach()))

    @property
    def over_budget(self) -> bool:
        """Whether too many steps were skipped, at least one of them since this start."""
        return self.count > max(self.budget, self.count_at_start)

    def read(self, sample_names: Callable[[int], list[str]]) -> None:
        """Count and log the steps that were skipped since the last read; all ranks call it.

        `sample_names(step)` are those of the global batch of `step`, counted from 0.
        """
        steps, self.unread = self.unread, []
        finite = torch.stack([finite for _, finite, _ in steps]).cpu() if steps else torch.ones(0)
        if finite.all():
            return
        losses = (all_reduce(torch.stack([loss for _, _, loss in steps])) / world_size()).cpu()
        lines = [
            # The loss as text: JSON has no number for NaN and infinity.
            {"step": step, "loss": str(loss.item()), "samples": sample_names(step - 1)}
            for (step, _, _), fine, loss in zip(steps, finite, losses, strict=True)
            if not fine
        ]
        self.count += len(lines)
        if is_main():
            print(
                f"warning: skipped steps with a loss or gradient that is not finite: {len(lines)}, "
                f"{self.count} so far; see {self.path}"
            )

        def write() -> None:
            with self.path.open("a") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)

        on_main_process(self.path.parent, write)
