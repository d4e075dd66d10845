"""The progress of a long command, on stderr.

1250 / 20000 videos, 812 videos/s, 372 MB/s, 0:23 left

One line that changes on a terminal; one line every ten seconds in a log file.
"""

from __future__ import annotations

import sys
import time


class Progress:
    """Call `add` after each of `total` videos; `size` is the number of bytes read for it."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.bytes = total, 0, 0
        self.began = self.printed = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, size: int = 0) -> None:
        self.done, self.bytes = self.done + 1, self.bytes + size
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
        return f"{self.done} / {self.total} videos, {rate:.0f} videos/s{speed}, {time_left}"
