"""Preemption: signals and the checkpoint clock, agreed over all ranks.

    signal   SIGTERM, SIGINT (Ctrl-C), SIGHUP (a closed terminal), SIGUSR1 or SIGUSR2 to any rank
             ──> all ranks stop after the same step
             ──> checkpoint, RUN/resume.json, exit code 75: the same command goes on
    clock    loop.checkpoint_every_minutes have passed on rank zero ──> all ranks save

A rank that stopped without the others would leave them waiting in a collective. So all ranks call
`agreed` after every step, and all get the same answer.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cjepa_dist.errors import EXIT_PREEMPTED
from cjepa_dist.runtime.clock import timestamp
from cjepa_dist.runtime.collectives import is_main
from cjepa_dist.runtime.files import write_json
from cjepa_dist.runtime.processes import end_with_parent

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# What nohup, or a shell that starts something in the background, ignores for its children.
MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)


class Preemption:
    """Use it as a context manager around the loop, on every rank, once the run directory is locked.

    `minutes` between two checkpoints by the clock, 0 = none. `group` is a process group on the
    CPU: a signal must not wait for the GPU's queue, nor the GPU for a signal.
    """

    def __init__(
        self, run_dir: Path, minutes: float, group: dist.ProcessGroup | None = None
    ) -> None:
        self.resume_file, self.minutes, self.group = run_dir / "resume.json", minutes, group
        self.signal, self.last_save, self.exiting = 0, time.monotonic(), False
        self.checkpoint_due = False
        # Asked now: when the run ends, the process group is gone, and every rank would be the main.
        self.is_main = is_main()
        self.handlers: dict[signal.Signals, Any] = {}
        self.pending: tuple[torch.Tensor, dist.Work | None]
        self.pending = torch.zeros(2, dtype=torch.int64), None

    def __enter__(self) -> Preemption:
        if self.is_main:
            self.resume_file.unlink(missing_ok=True)
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if name in MAY_BE_IGNORED and signal.getsignal(name) == signal.SIG_IGN:
                    continue
                self.handlers[name] = signal.signal(name, self.on_signal)
            terminate_with_launcher()
        return self

    def __exit__(self, *exception: object) -> None:
        for name, handler in self.handlers.items():
            # When the first rank exits with 75, torchrun sends SIGTERM to the slower ones. They
            # must ignore it, or their exit code would be -15.
            signal.signal(name, signal.SIG_IGN if self.exiting else handler)

    def on_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def agreed(self) -> int:
        """The signal that all ranks stop for, 0 = none; also sets `checkpoint_due`.

        All ranks call it after every step. The maximum over the ranks is formed on the CPU while
        the next step runs, and read after that step: nobody waits for a device, and no rank's
        program is more than one step ahead of another's.
        """
        votes, work = self.pending
        if work is not None:
            work.wait()
        self.checkpoint_due = bool(votes[1])
        if self.checkpoint_due:
            self.last_save = time.monotonic()
        elapsed = time.monotonic() - self.last_save
        due = self.is_main and self.minutes > 0 and elapsed >= 60 * self.minutes
        vote, work = torch.tensor([self.signal, due], dtype=torch.int64), None
        if self.group is not None:
            work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = vote, work
        return int(votes[0])

    def exit_code(self, number: int, step: int) -> int:
        """After the checkpoint of `step`: write RUN/resume.json and return the exit code, 75.

        A launcher may hide the exit code; the file stays. Signals are ignored from now on, since
        the process is about to end.
        """
        self.exiting = True
        if self.is_main:
            name = signal.Signals(number).name
            content = {
                "reason": name,
                "step": step,
                "time": timestamp(),
                "exit_code": EXIT_PREEMPTED,
            }
            write_json(self.resume_file, content)
            print(
                f"stopped by {name} after step {step} with a checkpoint; "
                "the same command goes on from there",
                flush=True,
            )
        return EXIT_PREEMPTED


def terminate_with_launcher() -> None:
    """Under torchrun or accelerate, get a SIGTERM when the launcher dies.

    Otherwise a launcher that is killed would leave its workers training on their own.
    """
    if {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        end_with_parent()
