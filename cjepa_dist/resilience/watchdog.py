"""Ends a process that makes no progress, after it has written down where it stands.

    no `beat` for loop.hang_timeout_minutes ──> stacks of all threads in RUN/hang_rank<k>.txt and
    on stderr ──> exit code 70

A rank that hangs would keep all other ranks, and their machines, waiting.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

from cjepa_dist.errors import EXIT_HUNG
from cjepa_dist.runtime.clock import timestamp


class Watchdog:
    """Use it as a context manager around the loop, on every rank; `minutes` 0 = never.

    Counts its own ticks instead of reading the clock: a job that was suspended for a while (less
    than twice `minutes`) has not hung.
    """

    def __init__(self, run_dir: Path, minutes: float) -> None:
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.path, self.limit, self.beats = run_dir / f"hang_rank{rank}.txt", 60 * minutes, 0
        self.tick = min(5.0, self.limit / 10)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.limit:
            self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        if self.limit:
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step, validation or checkpoint is finished: count from zero again."""
        self.beats += 1

    def watch(self) -> None:
        quiet, seen = 0.0, self.beats
        while not self.stopped.wait(self.tick):
            # If something holds the GIL, this thread stands still too. Then C code prints the
            # stacks on stderr and exits with 1.
            faulthandler.dump_traceback_later(2 * self.limit, exit=True)
            quiet, seen = (quiet + self.tick, seen) if self.beats == seen else (0.0, self.beats)
            if quiet >= self.limit:
                self.end_process()

    def end_process(self) -> None:
        message = (
            f"no step finished in loop.hang_timeout_minutes={self.limit / 60:g}: "
            f"process {os.getpid()} on {socket.gethostname()} ends"
        )
        try:
            # Append: a scheduler may start the run again before anyone has read the file.
            with self.path.open("a") as stream:
                stream.write(f"{timestamp()} {message}; stacks of its threads:\n")
                stream.flush()
                faulthandler.dump_traceback(stream)
        except OSError as error:
            message += f" ({self.path}: {error})"
        print(f"error: {message}; stacks in {self.path}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(2)
        # The first rank to exit breaks the collectives of the others: let them write first.
        time.sleep(max(3.0, 2 * self.tick))
        os._exit(EXIT_HUNG)
