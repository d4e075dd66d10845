"""How far a long command is, on stderr: a line that changes on a terminal, one every ten seconds in a log file.

1250 / 20000 videos, 812 videos/s, 372 MB/s, 0:23 left
"""

from __future__ import annotations

import sys
import time


class Progress:
    """`add` after each of `total` videos; `size` is what it took from the source."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.bytes = total, 0, 0
        self.began = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, size: int = 0) -> None:
        self.done, self.bytes = self.done + 1, self.bytes + size
        now = time.monotonic()
        last = self.terminal and self.done == self.total
        if now - self.shown >= (0.5 if self.terminal else 10.0) or last:
            self.shown = now
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
        moved = f", {1e-6 * self.bytes / max(seconds, 1e-9):.0f} MB/s" if self.bytes else ""
        return f"{self.done} / {self.total} videos, {rate:.0f} videos/s{moved}, {left // 60}:{left % 60:02d} left"
