"""What a run says of itself: one line or a bar, one JSON line and one set of TensorBoard points, all from one place, on rank 0."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cjepa_dist.config import flat
from cjepa_dist.training.progress import bar


class Telemetry:
    """Writes into RUN; on ranks other than 0 every call does nothing."""

    def __init__(self, run: Path, config: Any, *, active: bool, start: int, steps: int) -> None:
        self.active, self.steps, self.bar = active, steps, None
        if not active:
            return
        self.bar = bar(start, steps)
        self.lines = run / "metrics.jsonl"
        begun = self.lines.exists()
        rewind(self.lines, start)
        self.writer = SummaryWriter(str(run), purge_step=start + 1 if begun else None)
        if not begun:
            # SummaryWriter.add_hparams would make a sub-run of its own.
            fields = {key: value for key, value in flat(dataclasses.asdict(config)) if isinstance(value, (int, float, str, bool))}
            for summary in hparams(fields, {"val/loss": 0.0}):
                self.writer._get_file_writer().add_summary(summary)

    def write(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """`step` counts finished steps."""
        if not self.active:
            return
        with self.lines.open("a") as stream:
            stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        if self.bar is not None and kind == "train":
            self.bar.say(values)
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"{kind} {step}/{self.steps}  {shown}", flush=True)

    def step(self, done: int) -> None:
        """After every step: moves the bar on a terminal."""
        if self.bar is not None:
            self.bar.step(done)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """`picture` (H, W, 3) uint8."""
        if self.active:
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.active:
            self.writer.close()


def add_picture(run: Path, step: int, name: str, picture: np.ndarray) -> None:
    """A picture (H, W, 3) uint8 among those of a run that has ended."""
    with SummaryWriter(str(run)) as writer:
        writer.add_image(name, picture, step, dataformats="HWC")


def rewind(path: Path, start: int) -> None:
    """Drop the lines of steps after `start`: in the run that goes on from there they never happened. And one that a full disk cut off."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(line for line in lines if json.loads(line)["step"] <= start))
        os.replace(temporary, path)
