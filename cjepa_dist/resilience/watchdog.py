"""Ends a process that no longer makes progress."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from cjepa_dist.resilience.run_lock import timestamp

EXIT_HUNG = os.EX_SOFTWARE  # 70


class Watchdog:
    """Ends this process when `beats` has not moved for `minutes` (0 = never): a rank that hangs would keep all others, and their machines.

    Counts its own ticks, not the clock: a job that was suspended for a while (less than twice `minutes`) has not hung.
    """

    def __init__(self, minutes: float, path: Path) -> None:
        self.limit, self.path, self.beats = 60 * minutes, path, 0
        self.tick = min(5.0, self.limit / 10)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def start(self) -> None:
        if self.limit:
            self.thread.start()

    def stop(self) -> None:
        self.over.set()
        if self.limit:
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()

    def watch(self) -> None:
        quiet, seen = 0.0, self.beats
        while not self.over.wait(self.tick):
            # If something holds the GIL, this thread stands still too: then C code shows the stacks on stderr and exits with 1.
            faulthandler.dump_traceback_later(2 * self.limit, exit=True)
            quiet, seen = (quiet + self.tick, seen) if self.beats == seen else (0.0, self.beats)
            if quiet >= self.limit:
                self.end()

    def end(self) -> None:
        message = f"no step finished in loop.hang_timeout_minutes={self.limit / 60:g}: process {os.getpid()} on {socket.gethostname()} ends"
        try:
            with self.path.open(
                "a"
            ) as stream:  # a scheduler may start the run again before anyone has read it
                stream.write(f"{timestamp()} {message}; stacks of its threads:\n")
                stream.flush()
                faulthandler.dump_traceback(stream)
        except OSError as error:
            message += f" ({self.path}: {error})"
        print(f"error: {message}; stacks in {self.path}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(2)
        time.sleep(
            max(3.0, 2 * self.tick)
        )  # the first to leave breaks the others' collectives: let them write their stacks too
        os._exit(EXIT_HUNG)
