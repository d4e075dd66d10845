"""Faults on purpose, for tests and tools/fault_drill: CJEPA_FAULT="nan@5,kill@7:rank1" makes them happen.

    nan   a sample of the batch is not a number          kill                 SIGKILL to this process
    hang  this process goes no further                   kill-in-checkpoint   the same, between writing a checkpoint and renaming it
    pause two seconds' sleep: time to send a signal      replica              one weight of this process's changes a little
    linger  the same, before what a checkpoint that failed has written is removed

The number counts finished steps; without a rank all suffer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch


def is_planned(kind: str, step: int) -> bool:
    """Whether this process is to suffer `kind` after `step` finished steps."""
    plan = os.environ.get("CJEPA_FAULT")
    if not plan:
        return False
    rank = os.environ.get("RANK", "0")
    return bool({f"{kind}@{step}", f"{kind}@{step}:rank{rank}"} & set(plan.split(",")))


def inject_before_step(step: int, batches: list[dict[str, torch.Tensor]]) -> None:
    """The faults planned for the step that begins."""
    if is_planned("nan", step):
        batches[-1]["slots"][0, 0] = float("nan")
    if is_planned("pause", step):
        time.sleep(2)
    if is_planned("kill", step):
        os.kill(os.getpid(), signal.SIGKILL)
    while is_planned("hang", step):
        time.sleep(60)


def inject_replica_fault(step: int, replicas: Callable[[], list[torch.Tensor]]) -> None:
    """After `step` steps, on what this process holds alike with others."""
    if is_planned("replica", step):
        with torch.no_grad():
            replicas()[0].view(-1)[0] += 1e-3


def inject_failed_checkpoint(step: int) -> None:
    if is_planned("linger", step):
        time.sleep(2)


def inject_in_checkpoint(step: int) -> None:
    if is_planned("kill-in-checkpoint", step):
        os.kill(os.getpid(), signal.SIGKILL)
