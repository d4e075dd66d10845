"""What became of a job, in one place for the status and the report: its state, how far it is, and why it failed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.config.merge import read_yaml
from cjepa_dist.errors import UserError
from slurm.job import Job
from slurm.jobs.job_log import log_path, log_tail, read_events
from slurm.record import ACTIVE_STATES, Record, local_runner, slurm_states

STATE_OF_EVENT = {"done": "DONE", "failed": "FAILED", "stopped": "INTERRUPTED", "start": "RUNNING"}


@dataclass
class JobState:
    """`state`: DONE, or Slurm's word, or what the job last said. Numbers are None where a job has none."""

    job: Job
    state: str
    nodes: str = ""
    restarts: int = 0
    reason: str = ""
    lines: list[str] = field(default_factory=list)
    step: int | None = None
    steps: int | None = None
    rate: float | None = None  # samples/s
    loss: float | None = None
    left: float | None = None  # s

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES

    @property
    def bad(self) -> bool:
        return self.state != "DONE" and not self.active and self.state != "NOT SUBMITTED"


def job_states(record: Record) -> dict[str, JobState]:
    """Of all jobs of the record, in order."""
    known, here = slurm_states(record), bool(local_runner(record))
    found: dict[str, JobState] = {}
    for name, job in record.jobs.items():
        said = read_events(record, name)
        last = said[-1] if said else {}
        state, nodes, reason = known.get(name, ("", "", ""))
        if job.done() and state not in ACTIVE_STATES:
            state, reason = "DONE", ""
        elif not state:
            state = STATE_OF_EVENT.get(
                str(last.get("event")), "PENDING" if here else "NOT SUBMITTED"
            )
            if state == "RUNNING" and not here:
                state, reason = "KILLED", "what ran it on this machine is gone"
        elif state == "COMPLETED":
            state, reason = (
                "FAILED",
                f"it ended without an error, but {next(p for p in job.outputs if not Path(p).exists())} is not there",
            )
        starts = [line for line in said if line["event"] == "start"]
        outcome = JobState(
            job,
            state,
            nodes or (starts[-1].get("host", "") if starts else ""),
            max(0, len(starts) - 1),
            reason,
        )
        if last.get("event") == "failed" and outcome.state == "RUNNING" and not outcome.reason:
            outcome.reason = (
                "its processes have ended, and Slurm has not ended the job: does it miss a node?"
            )
        if outcome.bad:
            explain_failure(outcome, record, first_failure(said), found)
        if job.is_training:
            read_progress(outcome, record)
        found[name] = outcome
    return found


def first_failure(said: list[dict[str, Any]]) -> dict[str, Any]:
    """Of what the nodes said since the last start, the first failure: the others follow from it. Else the last word."""
    begin = max((index for index, line in enumerate(said) if line["event"] == "start"), default=0)
    return next(
        (line for line in said[begin:] if line["event"] == "failed"), said[-1] if said else {}
    )


def explain_failure(
    outcome: JobState, record: Record, last: dict[str, Any], before: dict[str, JobState]
) -> None:
    """Why it is not done, and the last lines of its log."""
    lost = [name for name in outcome.job.needs if name in before and before[name].bad]
    if last.get("event") == "failed" and outcome.state != "CANCELLED":
        outcome.reason, outcome.lines = last["reason"], last.get("lines", [])
        return
    if lost:
        outcome.reason = f"never started: it needs {lost[0]} ({before[lost[0]].state.lower()})"
        return
    outcome.reason = outcome.reason or {
        "CANCELLED": "cancelled",
        "INTERRUPTED": f"stopped by {last.get('reason')}",
    }.get(outcome.state, f"ended by Slurm: {outcome.state}")
    outcome.lines = log_tail(log_path(record, outcome.job.name))
    if not last and outcome.state not in ("CANCELLED", "DEADLINE"):
        outcome.reason += (
            f"; it wrote nothing: do its nodes see {record.runs}? slurm.preflight finds out"
        )


def read_progress(outcome: JobState, record: Record) -> None:
    run = outcome.job.run_dir
    try:
        lines = [
            json.loads(line)
            for line in (run / "metrics.jsonl").read_text().splitlines()[-20:]
            if line.endswith("}")
        ]
        batch = read_yaml(run / "config.yaml")["loop"]["global_batch_size"]
    except (OSError, UserError, ValueError):
        return
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return
    outcome.step, outcome.rate, outcome.loss = (
        train[-1]["step"],
        train[-1].get("samples_per_second"),
        train[-1].get("loss"),
    )
    totals = re.findall(
        r"^(?:train|val) \d+/(\d+)",
        "\n".join(log_tail(log_path(record, outcome.job.name), 200)),
        re.MULTILINE,
    )
    if totals:
        outcome.steps = int(totals[-1])
        if outcome.rate and outcome.step is not None:
            outcome.left = (outcome.steps - outcome.step) * batch / outcome.rate
