"""The progress bar on a terminal. Without a terminal, each line of metrics is printed instead."""

from __future__ import annotations

import atexit
import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """For a run of `steps`, of which `start` are done. What is printed meanwhile goes above it."""

    def __init__(self, start: int, steps: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self.start, self.began = start, time.monotonic()
        self.progress = Progress(*columns, refresh_per_second=4)
        self.task = self.progress.add_task(
            "steps", total=steps, completed=start, rate="", metrics=""
        )
        self.progress.start()
        atexit.register(self.stop)  # after an error too, since the bar hides the cursor

    def advance(self, done: int) -> None:
        """Move to `done` finished steps."""
        rate = (done - self.start) / max(1e-9, time.monotonic() - self.began)
        self.progress.update(self.task, completed=done, rate=f"{rate:.3g} steps/s,")

    def show(self, values: dict[str, float]) -> None:
        """Show the newest loss and samples per second beside the bar."""
        texts = [
            f"{name} {values[name]:.4g}"
            for name in ("loss", "samples_per_second")
            if name in values
        ]
        self.progress.update(self.task, metrics="  ".join(texts))

    def stop(self) -> None:
        self.progress.stop()
        atexit.unregister(self.stop)


def progress_bar(start: int, steps: int) -> ProgressBar | None:
    """A bar if standard output is a terminal."""
    return ProgressBar(start, steps) if sys.stdout.isatty() else None
