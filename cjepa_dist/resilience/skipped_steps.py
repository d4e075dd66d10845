"""The log of skipped steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.runtime.collectives import all_reduce, is_main, world_size


class SkippedSteps:
    """The skipped steps of a run; `count` of them so far."""

    def __init__(self, run_dir: Path, *, count: int) -> None:
        self.path, self.count = run_dir / "skipped.jsonl", count
        self.unread: list[tuple[int, Tensor, Tensor]] = []

    def add(self, done: int, good: Tensor, loss: Tensor) -> None:
        """Note the step that made `done`; nothing is read from the device."""
        self.unread.append((done, good, loss.detach()))

    def read(self, samples: Callable[[int], list[str]]) -> int:
        """How many steps since the last read were skipped; all ranks call it. `samples(step)` names a step's global batch."""
        noted, self.unread = self.unread, []
        good = torch.stack([good for _, good, _ in noted]).cpu() if noted else torch.ones(0)
        if good.all():
            return 0
        losses = (all_reduce(torch.stack([loss for _, _, loss in noted])) / world_size()).cpu()
        lines = [
            {
                "step": done,
                "loss": str(loss.item()),
                "samples": samples(done - 1),
            }  # "nan" and "inf" are no JSON numbers
            for (done, _, _), fine, loss in zip(noted, good, losses)
            if not fine
        ]
        self.count += len(lines)
        if is_main():
            print(
                f"warning: skipped steps with a loss or gradient that is not finite: {len(lines)}, {self.count} so far; see {self.path}"
            )

        def write() -> None:
            with self.path.open("a") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)

        on_main_process(self.path.parent, write)
        return len(lines)
