"""Faults on purpose, for tests and tools/fault_drill: CJEPA_FAULT="nan@5,kill@7:rank1".

    nan      one value in the batch is NaN
    kill     SIGKILL to this process
    kill-in-checkpoint   the same, after a checkpoint is written and before it is renamed
    hang     this process stops making progress
    replica  one weight of this process changes a little
    pause    two seconds of sleep: time to send a signal
    linger   the same, before the rest of a failed checkpoint is removed

The number counts finished steps; without a rank, the fault hits all ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch


def is_planned(kind: str, step: int) -> bool:
    """Whether fault `kind` hits this process after `step` finished steps."""
    plan = os.environ.get("CJEPA_FAULT")
    if not plan:
        return False
    rank = os.environ.get("RANK", "0")
    return bool({f"{kind}@{step}", f"{kind}@{step}:rank{rank}"} & set(plan.split(",")))


class FaultyStep:
    """A training step around which the planned faults happen.

    `step` is called as TrainStep is; `replicas` returns what this process holds alike with others.
    """

    def __init__(self, step: Any, replicas: Callable[[], list[torch.Tensor]]) -> None:
        self.step, self.replicas = step, replicas

    def __call__(self, batches: list[dict[str, torch.Tensor]], number: int) -> Any:
        if is_planned("nan", number):
            batches[-1]["slots"][0, 0] = float("nan")
        if is_planned("pause", number):
            time.sleep(2)
        if is_planned("kill", number):
            os.kill(os.getpid(), signal.SIGKILL)
        while is_planned("hang", number):
            time.sleep(60)
        result = self.step(batches, number)
        if is_planned("replica", number + 1):
            with torch.no_grad():
                self.replicas()[0].view(-1)[0] += 1e-3
        return result

    def read_metrics(self) -> dict[str, float]:
        return self.step.read_metrics()


def with_faults(step: Any, replicas: Callable[[], list[torch.Tensor]]) -> Any:
    """The training step itself, or with the faults that CJEPA_FAULT plans."""
    return FaultyStep(step, replicas) if os.environ.get("CJEPA_FAULT") else step


def inject_after_failed_checkpoint(step: int) -> None:
    """After the checkpoint of `step` failed, before its files are removed."""
    if is_planned("linger", step):
        time.sleep(2)


def inject_before_rename(step: int) -> None:
    """After the checkpoint of `step` was written, before it is renamed."""
    if is_planned("kill-in-checkpoint", step):
        os.kill(os.getpid(), signal.SIGKILL)
