"""Logs metrics and images of a run: a printed line or a bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import socket
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, image, scalar

from cjepa_dist.config.merge import flatten
from cjepa_dist.errors import without_secrets
from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.runtime.collectives import is_main
from cjepa_dist.runtime.files import drop_lines_after
from cjepa_dist.runtime.progress import report_progress
from cjepa_dist.training.progress_bar import progress_bar

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class RunLogger:
    """All ranks make one and call `log`; rank zero writes.

    Raises UserError, on all ranks, where the disk is full.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Any,
        *,
        start: int,
        steps: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.run_dir, self.steps, self.group = run_dir, steps, group
        self.bar = progress_bar(start, steps) if is_main() else None
        self.lines, self.events = run_dir / "metrics.jsonl", EventFile(run_dir)
        self.images: list[Event] = []
        on_main_process(run_dir, lambda: self.begin(config, start), group)

    def begin(self, config: Any, start: int) -> None:
        begins = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        if self.lines.exists():
            drop_lines_after(self.lines, start)
            # TensorBoard drops what it has of this step and later ones.
            self.events.write(begins)
        else:
            # TensorBoard takes the first START of a run for its beginning, not for a resume.
            summaries = hparams(hyperparameters(config), {"val/loss": 0.0})
            self.events.write(begins, *(Event(summary=summary) for summary in summaries))

    def log(self, step: int, values: dict[str, float], kind: str = "train") -> None:
        """Log values after `step` finished steps, and the images added since the last call."""
        on_main_process(self.run_dir, lambda: self.write(step, values, kind), self.group)

    def write(self, step: int, values: dict[str, float], kind: str) -> None:
        with self.lines.open("a") as stream:
            stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        points = [
            Event(step=step, summary=scalar(f"{kind}/{name}", value))
            for name, value in values.items()
        ]
        self.events.write(*points, *self.images)
        self.images.clear()
        if self.bar is not None and kind == "train":
            self.bar.show(values)
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"{kind} {step}/{self.steps}  {text}", flush=True)

    def advance(self, done: int) -> None:
        """After every step: move the bar on a terminal, report to whoever runs this command."""
        if is_main():
            report_progress(done, self.steps, "steps")
        if self.bar is not None:
            self.bar.advance(done)

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an image (H, W, 3) uint8, to be written by the next `log`."""
        if is_main():
            self.images.append(Event(step=step, summary=image(name, pixels, dataformats="HWC")))

    def add_animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Add a GIF of `size` (width, height), which TensorBoard plays as an image."""
        if is_main():
            width, height = size
            picture = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=gif
            )
            summary = Summary(value=[Summary.Value(tag=name, image=picture)])
            self.images.append(Event(step=step, summary=summary))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def hyperparameters(config: Any) -> dict[str, int | float | str | bool]:
    """What TensorBoard shows of a config: its fields, as text what is no number (lists, tables)."""
    found = {}
    for key, value in flatten(dataclasses.asdict(config)):
        # Numbers become doubles: a larger integer would be shown as another one.
        exact = isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53)
        found[key] = value if exact or isinstance(value, str) else json.dumps(value)
        if isinstance(value, str):  # a protocol buffer takes no name that is not Unicode
            shown = without_secrets(value, "")
            found[key] = shown.encode("utf-8", "backslashreplace").decode()
    return found


class EventFile:
    """TensorBoard's event file of a run, created by the first `write`.

    TensorBoard reads the files of a run in the order of their names, which begin with the time,
    and never goes back: if the clock did, the name goes on from those that are there.

    torch's SummaryWriter writes in its own thread, where a full disk is a traceback that is
    noticed late or never. A record that a full disk cuts off ends this file only; a resumed run
    writes another one.
    """

    number = itertools.count()

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.writer = f"{socket.gethostname()}.{os.getpid()}.{next(self.number)}"

    @cached_property
    def path(self) -> Path:
        names = [EVENT_FILE.match(path.name) for path in self.run_dir.glob("events.out.tfevents.*")]
        newest = max((int(name[1]) for name in names if name), default=0)
        number = max(int(time.time()), newest + 1)
        return self.run_dir / f"events.out.tfevents.{number:010d}.{self.writer}"

    def write(self, *events: Event) -> None:
        content = io.BytesIO()
        records = RecordWriter(content)
        with self.path.open("ab") as stream:
            for event in (
                events if stream.tell() else (Event(file_version="brain.Event:2"), *events)
            ):
                event.wall_time = time.time()
                records.write(event.SerializeToString())
            stream.write(content.getvalue())


def log_image(run_dir: Path, step: int, name: str, pixels: np.ndarray) -> None:
    """Add an image (H, W, 3) uint8 to those of a run that has ended."""
    EventFile(run_dir).write(Event(step=step, summary=image(name, pixels, dataformats="HWC")))
