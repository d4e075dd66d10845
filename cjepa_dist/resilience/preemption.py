"""What watches over a run while the loop trains.

    RUN/.lock          held by rank 0 as long as the run lasts; a second run on the folder is refused (lock.py)
    a signal           SIGTERM, SIGUSR1, SIGUSR2 to any one rank ──> all agree at a step ──> checkpoint, RUN/resume.json, exit code 75
    the clock          rank 0's says when loop.checkpoint_every_minutes have passed; agreed in the same way
    a hung rank        no step in loop.hang_timeout_minutes ──> stacks of all threads in RUN/hang_rank<k>.txt and on stderr, exit code 70

A rank that left alone would hang the others: whatever ends a run is agreed first.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from cjepa_dist.config.schema import LoopConfig
from cjepa_dist.errors import UserError
from cjepa_dist.resilience import run_lock
from cjepa_dist.resilience.disk_full import full_disk_is_a_user_error
from cjepa_dist.resilience.run_lock import timestamp
from cjepa_dist.resilience.watchdog import Watchdog
from cjepa_dist.runtime.collectives import first_error, gloo_backends, world_size

EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75, "try again": the same command goes on

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

OWN_FILES = run_lock.LOCK_FILES  # what a run folder may hold before there is a run in it


class PreemptionGuard:
    """`with Guard(run, loop) as guard:` around the loop, on every rank. Raises UserError where another process trains in `run`."""

    def __init__(self, run: Path, loop: LoopConfig) -> None:
        self.run, self.minutes = run, loop.checkpoint_every_minutes
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.lock = run_lock.RunLock(run)
        self.watchdog = Watchdog(loop.hang_timeout_minutes, run / f"hang_rank{self.rank}.txt")
        self.signal, self.saved, self.left = 0, time.monotonic(), False
        self.handlers: dict[signal.Signals, Any] = {}
        # A group of its own, on the CPU: a signal must not wait for the GPUs' queue, nor they for it.
        self.group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self.writing = (
            dist.new_group(backend="gloo") if world_size() > 1 else None
        )  # for the thread that writes checkpoints
        # A gloo group that dies waits for its threads, and they for the GIL to let go of their last tensors. So what refers to it last
        # must not hold the GIL: DDP's reducer does; these do not, and live longer. Else a run can hang after its last step (torch 2.13).
        self.backends = gloo_backends(self.group, self.writing)
        self.asked: tuple[torch.Tensor, dist.Work | None] = torch.zeros(2, dtype=torch.int64), None

    def __enter__(self) -> PreemptionGuard:
        if refusal := first_error(self.own() if self.rank == 0 else None):
            raise UserError(refusal)
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows handlers nowhere else
            self.handlers = {name: signal.signal(name, self.note) for name in SIGNALS}
            die_with_launcher()
        self.watchdog.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.watchdog.stop()
        for name, handler in self.handlers.items():
            # Having left with 75: torchrun's SIGTERM to the slower ranks would make theirs -15.
            signal.signal(name, signal.SIG_IGN if self.left else handler)
        self.lock.release()

    def own(self) -> str | None:
        """Take the lock; or, in a line, whose it is, or that there is no room for it."""
        try:
            with full_disk_is_a_user_error(self.run):
                refusal = self.lock.take()
        except UserError as error:
            refusal = str(error)
        if refusal is None:
            (self.run / "resume.json").unlink(missing_ok=True)
        return refusal

    def note(self, number: int, frame: Any) -> None:
        self.signal = number

    def alive(self) -> None:
        """Something was finished: the watchdog starts to count anew."""
        self.watchdog.beats += 1

    def agreed(self) -> tuple[int, bool]:
        """(signal or 0, whether the clock asks for a checkpoint). Every rank calls it after every step, and gets the same.

        The maximum of all ranks' wishes is formed on the CPU while the next step runs and is read after it: nobody waits for a device, and
        a rank's program is at most one step ahead of another's.
        """
        self.alive()
        found, work = self.asked
        if work is not None:
            work.wait()
        if found[1]:
            self.saved = time.monotonic()
        due = (
            self.rank == 0
            and self.minutes > 0
            and time.monotonic() - self.saved >= 60 * self.minutes
        )
        wish = torch.tensor([self.signal, due], dtype=torch.int64)
        self.asked = (
            wish,
            dist.all_reduce(wish, dist.ReduceOp.MAX, group=self.group, async_op=True)
            if self.group
            else None,
        )
        return int(found[0]), bool(found[1])

    def leave(self, number: int, step: int) -> int:
        """After the checkpoint of `step`: say that the run goes on from there. A launcher may hide the exit code; the file stays.

        Signals do nothing from now on: the process is about to end.
        """
        self.left = True
        if self.rank == 0:
            name = signal.Signals(number).name
            content = {
                "reason": name,
                "step": step,
                "time": timestamp(),
                "exit_code": EXIT_PREEMPTED,
            }
            (self.run / "resume.json").write_text(json.dumps(content, indent=1))
            print(
                f"stopped by {name} after step {step} with a checkpoint; the same command goes on from there",
                flush=True,
            )
        return EXIT_PREEMPTED


def die_with_launcher() -> None:
    """Under torchrun or accelerate, take the launcher's death as a SIGTERM: killed, it would leave its workers training on their own."""
    if (
        sys.platform == "linux"
        and {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys()
    ):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
