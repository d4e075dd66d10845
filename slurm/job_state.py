"""The state of each job, for the status and the report: how far it is, and why it failed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from cjepa_dist.config.merge import read_yaml
from cjepa_dist.errors import UserError
from slurm.experiment.job import Job
from slurm.jobs.job_log import log_path, log_tail, read_events
from slurm.record import (
    ACTIVE_STATES,
    FORGOTTEN,
    Record,
    SlurmState,
    local_runner,
    slurm_states,
)

STATE_OF_EVENT = {
    "done": "DONE",
    "failed": "FAILED",
    "retry": "FAILED",
    "stopped": "INTERRUPTED",
    "start": "RUNNING",
}

Event = dict[str, Any]


@dataclass
class JobState:
    """`state` is DONE, Slurm's word, or that of the job's last event. Unknown numbers are None."""

    job: Job
    state: str
    nodes: str = ""
    restarts: int = 0
    reason: str = ""
    log_lines: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)  # why it was started again, each time
    step: int | None = None
    total_steps: int | None = None
    samples_per_second: float | None = None
    loss: float | None = None
    seconds_left: float | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES

    @property
    def failed(self) -> bool:
        return self.state not in ("DONE", "NOT SUBMITTED") and not self.active


def job_states(record: Record, *, accounts_only: bool = False) -> dict[str, JobState]:
    """Of all jobs of the record, in order. Raises SlurmError as slurm_states does."""
    in_slurm = slurm_states(record, accounts_only=accounts_only)
    runs_here = bool(local_runner(record))
    found: dict[str, JobState] = {}
    for name, job in record.jobs.items():
        events = read_events(record.state_dir, name)
        state = current_state(job, SlurmState(*in_slurm.get(name, ())), events, runs_here)
        if state.failed:
            explain_failure(state, record, first_failure(events_of_last_start(events)), found)
        if job.is_training:
            read_progress(state, record)
        found[name] = state
    return found


def current_state(job: Job, slurm: SlurmState, events: list[Event], runs_here: bool) -> JobState:
    """State, nodes and restarts of a job, by its outputs, Slurm and its own events."""
    recent = events_of_last_start(events)
    last = recent[-1]["event"] if recent else ""
    state, reason = slurm.state, slurm.reason
    if state == FORGOTTEN and last in ("failed", "stopped"):  # its own word is better than none
        state, reason = STATE_OF_EVENT[last], ""
    if not state:
        state = STATE_OF_EVENT.get(last, "PENDING" if runs_here else "NOT SUBMITTED")
        if state == "RUNNING" and not runs_here:
            state, reason = "KILLED", "the process that ran it on this machine is gone"
    if state not in ACTIVE_STATES and job.done():
        state, reason = "DONE", ""
    elif state in ("COMPLETED", "DONE"):
        state, reason = "FAILED", f"it succeeded, but {job.missing_output()} is missing"
    if state == "RUNNING" and last == "failed" and not reason:
        reason = "its processes have ended, and Slurm has not ended the job: did it lose a node?"
    starts = [event for event in events if event["event"] == "start"]
    host = next((event["host"] for event in recent if "host" in event), "")
    retried = [event["reason"] for event in events if event["event"] == "retry"]
    restarts = max(0, len(starts) - 1)
    return JobState(job, state, slurm.nodes or host, restarts, reason, retried=retried)


def events_of_last_start(events: list[Event]) -> list[Event]:
    """The events of a job's last start; their order in the file may be another.

    An earlier start, on a node that Slurm has lost, may write after the last one has begun; and a
    node may fail before the first node has written that they start. In Slurm, a job's number and
    its restarts tell the starts apart; on one machine, the order does.
    """
    starts: dict[tuple[str, int], list[Event]] = {}
    local = 0
    for event in events:
        job = event.get("job", "")
        local += event["event"] == "start" and not job
        starts.setdefault((job, event.get("restart", 0) if job else local), []).append(event)
    return list(starts.values())[-1] if starts else []


def first_failure(events: list[Event]) -> Event:
    """The first failure of a start, as others follow from it; else the last event."""
    failures = (event for event in events if event["event"] == "failed")
    return next(failures, events[-1] if events else {})


def explain_failure(
    state: JobState, record: Record, event: Event, before: dict[str, JobState]
) -> None:
    """Sets the reason of a failure and the last lines of the log."""
    if event.get("event") == "failed" and state.state != "CANCELLED":
        state.reason, state.log_lines = event["reason"], event.get("lines", [])
        return
    failed = [before[name] for name in state.job.needs if name in before and before[name].failed]
    if failed:
        state.reason = f"never started: it needs {failed[0].job.name} ({failed[0].state.lower()})"
        return
    why = f"ended by Slurm: {state.state}"
    if event.get("event") == "stopped":
        why = f"stopped by {event['reason']}, and not in the queue any more"
    state.reason = state.reason or {"CANCELLED": "cancelled"}.get(state.state, why)
    state.log_lines = log_tail(log_path(record.state_dir, state.job.name))
    if not event:  # what failed before our own code began, such as a module or a container
        state.log_lines = batch_log_tail(record, state.job.name)
    if not event and not state.log_lines and state.state not in ("CANCELLED", "DEADLINE"):
        state.reason += (
            f"; it wrote nothing: can its nodes see {record.runs}? slurm.preflight checks that"
        )


def batch_log_tail(record: Record, name: str) -> list[str]:
    """The last lines that the batch script of a job wrote."""
    number = record.job_ids.get(name)
    found = (record.state_dir / "submitit").glob(f"*/{number}_0_log.out") if number else ()
    return next((log_tail(path) for path in found), [])


def read_progress(state: JobState, record: Record) -> None:
    """Sets step, loss and speed of a training from its metrics, and the time left from its log."""
    run_dir = state.job.run_dir
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()[-20:]
        metrics = [json.loads(line) for line in lines if line.endswith("}")]
        batch_size = int(read_yaml(run_dir / "config.yaml")["loop"]["global_batch_size"])
    except (OSError, UserError, ValueError, TypeError, LookupError, RecursionError):
        return
    train = [line for line in metrics if isinstance(line, dict) and line.get("kind") == "train"]
    if not train:
        return
    last = {name: value for name, value in train[-1].items() if type(value) in (int, float)}
    state.step, state.loss = last.get("step"), last.get("loss")
    state.samples_per_second = last.get("samples_per_second")
    log = "\n".join(log_tail(log_path(record.state_dir, state.job.name), 200))
    totals = re.findall(r"^(?:train|val) \d+/(\d+)", log, re.MULTILINE)
    if totals:
        state.total_steps = int(totals[-1])
    if state.total_steps and state.samples_per_second and state.step is not None:
        steps_left = state.total_steps - state.step
        state.seconds_left = steps_left * batch_size / state.samples_per_second
