"""What a local run shows: a line for each job, with its progress while it runs.

On a terminal the lines of running jobs change in place. Elsewhere a line is printed when a job
ends, and every half minute one that says how far the running jobs are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cjepa_dist.runtime.progress import read_progress
from slurm.jobs.job_log import log_path, progress_path

PRINT_EVERY_S = 30.0
BAR_WIDTH = 24


class JobLines:
    """Use as a context manager. `started` and `ended` tell it of jobs, `refresh` looks again."""

    def __init__(self, state_dir: Path, names: Collection[str], *, verbose: bool = False) -> None:
        self.state_dir, self.count, self.verbose = state_dir, len(names), verbose
        self.width = max(map(len, names), default=0)
        self.began: dict[str, float] = {}  # of running jobs, seconds
        # (time, done) when the running command first reported: its start-up is not its speed
        self.first: dict[str, tuple[float, int, str]] = {}
        self.shown: dict[str, int] = {}  # bytes of each log that were printed, if `verbose`
        self.ended_count, self.printed = 0, time.monotonic()
        self.console = Console(highlight=False, soft_wrap=True)
        live = self.console.is_terminal and not verbose
        self.live = Live(console=self.console, refresh_per_second=4) if live else None

    def __enter__(self) -> JobLines:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.update(Text(""))
            self.live.stop()

    def started(self, name: str) -> None:
        self.began[name] = time.monotonic()
        if self.verbose:
            path = log_path(self.state_dir, name)
            self.shown[name] = path.stat().st_size if path.exists() else 0

    def ended(self, name: str, result: str, advice: str = "") -> None:
        """Print the job's last line; `result` is a word such as "done"."""
        self.copy_log(name)
        seconds = time.monotonic() - self.began.pop(name)
        self.first.pop(name, None)
        self.ended_count += 1
        self.say(f"{name:<{self.width}} {result} after {seconds:.0f} s{advice}")

    def skipped(self, name: str, reason: str) -> None:
        """Print that a job was not started."""
        self.ended_count += 1
        self.say(f"{name:<{self.width}} skipped, {reason}")

    def say(self, line: str) -> None:
        """Print a line above those of the running jobs."""
        self.console.print(line, markup=False)

    def refresh(self) -> None:
        for name in self.began:
            self.copy_log(name)
        lines = [self.line(name) for name in self.began]
        if self.live:
            self.live.update(Text("\n".join(lines)))
        elif time.monotonic() - self.printed >= PRINT_EVERY_S:
            self.printed = time.monotonic()
            self.say(f"{self.ended_count} of {self.count} jobs have ended; running:")
            for line in lines:
                self.say(f"  {line}")

    def line(self, name: str) -> str:
        """Name, progress, rate and time left of a running job."""
        now = time.monotonic()
        progress = read_progress(progress_path(self.state_dir, name))
        done, total = progress.get("done", 0), progress.get("total", 0)
        if not total:
            return f"{name:<{self.width}} {now - self.began[name]:.0f} s"
        unit = progress["unit"]
        first = self.first.setdefault(name, (now, done, unit))
        if first[1] > done or first[2] != unit:  # another command of the job
            first = self.first[name] = (now, done, unit)
        rate = (done - first[1]) / max(now - first[0], 1e-9)
        full = round(BAR_WIDTH * done / total)
        bar = "━" * full + "·" * (BAR_WIDTH - full)
        text = f"{name:<{self.width}} {bar} {done}/{total} {unit}"
        if rate > 0:
            left = round((total - done) / rate)
            text += f", {rate:.3g}/s, {left // 60}:{left % 60:02d} left"
        return text

    def copy_log(self, name: str) -> None:
        """With `verbose`: print what the job has written since the last time."""
        path = log_path(self.state_dir, name)
        if not self.verbose or not path.exists():
            return
        with path.open(errors="replace") as stream:
            stream.seek(self.shown.get(name, 0))
            for text in stream:
                print(f"{name}: {text.rstrip()}")
            self.shown[name] = stream.tell()
        sys.stdout.flush()
