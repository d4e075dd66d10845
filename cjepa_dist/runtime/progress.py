"""The progress of a long command: one line on stderr, and a file for whoever runs the command.

1250 / 20000 videos, 812 videos/s, 372 MB/s, 0:23 left

The line changes in place on a terminal; a log file gets one every ten seconds. Where
CJEPA_PROGRESS names a file, `report_progress` writes the numbers there: `cjepa run` shows them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FILE_VARIABLE = "CJEPA_PROGRESS"
WRITE_EVERY_S = 0.5

written_at = [0.0]  # when this process last wrote its file


def report_progress(done: int, total: int, unit: str) -> None:
    """Write `done` of `total` units to the file that CJEPA_PROGRESS names, twice a second at most.

    A file that cannot be written does not stop the work.
    """
    path, now = os.environ.get(FILE_VARIABLE), time.monotonic()
    if not path or (now - written_at[0] < WRITE_EVERY_S and done < total):
        return
    written_at[0] = now
    temporary = Path(f"{path}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"done": done, "total": total, "unit": unit}))
        temporary.replace(path)
    except OSError:
        return


def read_progress(path: Path) -> dict[str, Any]:
    """{"done": ..., "total": ..., "unit": ...}; {} where nothing has been reported."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Progress:
    """Call `add` after each of `total` units; `size` is the number of bytes read for it."""

    def __init__(self, total: int, unit: str = "videos") -> None:
        self.total, self.unit, self.done, self.bytes = total, unit, 0, 0
        self.began = self.printed = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, size: int = 0, count: int = 1) -> None:
        self.done, self.bytes = self.done + count, self.bytes + size
        report_progress(self.done, self.total, self.unit)
        now = time.monotonic()
        last = self.terminal and self.done == self.total
        if now - self.printed >= (0.5 if self.terminal else 10.0) or last:
            self.printed = now
            end = "\n" if last or not self.terminal else ""
            print(
                ("\r\x1b[K" if self.terminal else "") + self.line(now - self.began),
                end=end,
                file=sys.stderr,
                flush=True,
            )

    def line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        left = round((self.total - self.done) / rate)
        speed = f", {1e-6 * self.bytes / max(seconds, 1e-9):.0f} MB/s" if self.bytes else ""
        time_left = f"{left // 60}:{left % 60:02d} left"
        return (
            f"{self.done} / {self.total} {self.unit}, {rate:.0f} {self.unit}/s{speed}, {time_left}"
        )
