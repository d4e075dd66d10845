"""What a job asks Slurm about itself, and how it goes back into the queue.

a checkpoint is written ──> squeue: does this start still have the job?
    yes ──> scontrol requeue, again and again until the controller takes it
    no commands here (a container) ──> a mark, which the batch script on the host acts on
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from slurm.jobs.slurm_command import SlurmError, SlurmMissing, ask_slurm
from slurm.jobs.spec import SlurmContext

# How often Slurm is asked for the job's state: 10 s, as long as a signal leaves at the least.
ATTEMPTS = 5

# A controller that restarts is away for minutes. Slurm ends a job at its limit anyway.
PATIENCE_S = 600.0
LONGEST_WAIT_S = 30.0


class SlurmAnswer(NamedTuple):
    """What squeue says of a job: its state, and how often it was requeued."""

    state: str
    restarts: int


def ask_job(job_id: str, attempts: int = ATTEMPTS) -> SlurmAnswer | None:
    """What Slurm says of a job; None where it does not know it. Raises SlurmError."""
    columns = "JobID:20,State:20,RestartCnt:10"
    # One task of an array has the number of the whole array, and so gets the lines of all.
    text = ask_slurm("squeue", "-h", "-r", "-j", job_id, "-O", columns, attempts=attempts)
    for line in text.splitlines():
        number, state, restarts = (*line.split(), "", "", "")[:3]
        if number == job_id and restarts.isdigit():
            return SlurmAnswer(state, int(restarts))
    return None


def is_superseded(answer: SlurmAnswer | None, context: SlurmContext) -> bool:
    """Whether Slurm took this node for lost and has started the job again on another one.

    Then this process must neither requeue the job nor report its failure.
    """
    return answer is not None and answer.restarts != context.restart_count


def requeue_job(context: SlurmContext, state_dir: Path | None) -> str:
    """Put this job back into the queue, asking for minutes where Slurm does not answer.

    Returns "requeued"; "marked" where the batch script is to do it; "left" where the job is not
    this start's any more (cancelled, or requeued by Slurm); else the last error.
    """
    message = ""
    for seconds in waits():
        try:
            answer = ask_job(context.job_id, attempts=1)
            # COMPLETING means a scancel, after which requeueing would bring the job back, or a
            # requeue under way.
            if answer is None or answer.state != "RUNNING" or is_superseded(answer, context):
                return "left"
            ask_slurm("scontrol", "requeue", context.queue_id)
        except SlurmMissing as error:
            if state_dir is None:
                return str(error)
            mark = marks_dir(state_dir) / f"{context.job_id}.{context.restart_count}"
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            return "marked"
        except SlurmError as error:
            message = str(error)
            print(f"warning: {message}; asking again in {seconds:g} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
        else:
            return "requeued"
    return message


def waits() -> Iterator[float]:
    """Seconds from one question to the next: twice as long each time, for PATIENCE_S in all."""
    seconds, total = 1.0, 0.0
    while total < PATIENCE_S:
        yield seconds
        total += seconds
        seconds = min(2 * seconds, LONGEST_WAIT_S)


def marks_dir(state_dir: Path) -> Path:
    return state_dir / "requeue"


def batch_lines(marks: Path) -> list[str]:
    """Of a batch script: at its end it requeues a job that has left a mark."""
    mark = f"{shlex.quote(str(marks))}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"
    return [
        "cjepa_requeue() {",
        f"    [ -e {mark} ] || return 0",
        "    scontrol requeue"
        ' "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        "}",
        "trap cjepa_requeue EXIT",
    ]
