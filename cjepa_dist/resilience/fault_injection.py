"""Faults on purpose, for tests and tools/fault_drill: CJEPA_FAULT="nan@5,kill@7:rank1".

    nan      one value in the batch is NaN
    kill     SIGKILL to this process
    kill-in-checkpoint   the same, after a checkpoint is written and before it is renamed
    hang     this process stops making progress
    replica  one weight of this process changes a little
    hold@5:FILE   wait until FILE exists, or until a signal asks this process to stop
    hold-failed-checkpoint@8:FILE   keep the rest of a failed checkpoint until FILE exists; the
             training writes FILE itself when all that it can still do is wait for the checkpoint

The number counts finished steps; without `:rankN` at the end, the fault hits all ranks. FILE is an
absolute path without a comma. Before a process waits for it, it adds a line "rank pid" to
FILE.waiting: what started the process knows then that it has arrived.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.environment import read_int

WITHOUT_FILE = ("nan", "kill", "kill-in-checkpoint", "hang", "replica")
WITH_FILE = ("hold", "hold-failed-checkpoint")
FAULT = re.compile(r"([a-z-]+)@(\d+)(?::(/[^,]*?))?(?::rank(\d+))?")
POLL_S = 0.02


class Fault(NamedTuple):
    """`file` is "" where the kind takes none; `rank` None = all ranks."""

    kind: str
    step: int
    file: str
    rank: int | None


def parse_faults(plan: str) -> list[Fault]:
    """The faults that CJEPA_FAULT plans. Raises UserError for what is none."""
    faults = []
    for text in filter(None, plan.split(",")):
        match = FAULT.fullmatch(text)
        if not match or match[1] not in (WITH_FILE if match[3] else WITHOUT_FILE):
            raise UserError(
                f"CJEPA_FAULT: {text} is no fault: KIND@STEP[:rankN] of {', '.join(WITHOUT_FILE)},"
                f" or KIND@STEP:/FILE[:rankN] of {', '.join(WITH_FILE)}"
            )
        rank = int(match[4]) if match[4] else None
        faults.append(Fault(match[1], int(match[2]), match[3] or "", rank))
    return faults


def find_fault(kind: str, step: int) -> Fault | None:
    """The fault `kind` that hits this process after `step` finished steps."""
    plan = os.environ.get("CJEPA_FAULT")
    if not plan:
        return None
    ranks = (None, read_int("RANK", 0))
    found = (
        fault
        for fault in parse_faults(plan)
        if (fault.kind, fault.step) == (kind, step) and fault.rank in ranks
    )
    return next(found, None)


def wait_for_file(path: str, stopping: Callable[[], bool]) -> None:
    """Say in `path`.waiting that this process waits, then wait for `path` or for `stopping`."""
    with open(f"{path}.waiting", "a") as stream:
        stream.write(f"{os.environ.get('RANK', '0')} {os.getpid()}\n")
    while not (Path(path).exists() or stopping()):
        time.sleep(POLL_S)


class FaultyStep:
    """A training step around which the planned faults happen.

    `step` is called as TrainStep is; `replicas` returns what this process holds alike with others;
    `stopping` says whether a signal has asked this process to stop.
    """

    def __init__(
        self,
        step: Any,
        replicas: Callable[[], list[torch.Tensor]],
        stopping: Callable[[], bool],
    ) -> None:
        self.step, self.replicas, self.stopping = step, replicas, stopping

    def __call__(self, batches: list[dict[str, torch.Tensor]], number: int) -> Any:
        if find_fault("nan", number):
            batches[-1]["slots"][0, 0] = float("nan")
        if fault := find_fault("hold", number):
            wait_for_file(fault.file, self.stopping)
        if find_fault("kill", number):
            os.kill(os.getpid(), signal.SIGKILL)
        while find_fault("hang", number):
            time.sleep(60)
        result = self.step(batches, number)
        if find_fault("replica", number + 1):
            with torch.no_grad():
                self.replicas()[0].view(-1)[0] += 1e-3
        return result

    def read_metrics(self) -> dict[str, float]:
        return self.step.read_metrics()


def with_faults(
    step: Any, replicas: Callable[[], list[torch.Tensor]], stopping: Callable[[], bool]
) -> Any:
    """The training step itself, or with the faults that CJEPA_FAULT plans. Raises UserError."""
    plan = os.environ.get("CJEPA_FAULT")
    if not plan:
        return step
    parse_faults(plan)
    return FaultyStep(step, replicas, stopping)


def inject_after_failed_checkpoint(step: int) -> None:
    """After the checkpoint of `step` failed, before its files are removed."""
    if fault := find_fault("hold-failed-checkpoint", step):
        wait_for_file(fault.file, lambda: False)


def inject_before_waiting(step: int) -> None:
    """The training waits for the checkpoint of `step`, which another thread writes."""
    if fault := find_fault("hold-failed-checkpoint", step):
        Path(fault.file).touch()


def inject_before_rename(step: int) -> None:
    """After the checkpoint of `step` was written, before it is renamed."""
    if find_fault("kill-in-checkpoint", step):
        os.kill(os.getpid(), signal.SIGKILL)
