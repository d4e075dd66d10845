"""What was submitted for a folder of runs, and what Slurm says of it: the folder RUNS/.slurm.

RUNS/.slurm/experiment.json    the experiment; each job and its last number in Slurm
RUNS/.slurm/.lock*             the process that runs the jobs without Slurm (executor=local)
RUNS/.slurm/events/, logs/     what each job writes (slurm/jobs/job_log.py)
RUNS/.slurm/submitit/<time>/   sbatch files and pickles of one submission
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cjepa_dist.config.command_line import split_arguments
from cjepa_dist.errors import UserError
from cjepa_dist.resilience import run_lock
from cjepa_dist.runtime.files import write_json
from slurm.experiment.job import Job
from slurm.jobs.slurm_command import SlurmError, SlurmMissing, ask_slurm

STATE_DIR = ".slurm"
FILE = "experiment.json"

ACTIVE_STATES = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
)

# Of a job that Slurm's controller has forgotten, while sacct does not know that it has ended.
FORGOTTEN = "UNKNOWN"

JOBS_A_CALL = 500  # a command line has a limit


class SlurmState(NamedTuple):
    """A job's state, nodes and reason, in Slurm's words."""

    state: str = ""
    nodes: str = ""
    reason: str = ""


@dataclass
class Record:
    """The jobs of a folder of runs, and each one's last number in Slurm ("" = never submitted)."""

    runs: Path
    experiment: dict[str, Any]
    jobs: dict[str, Job] = field(default_factory=dict)
    job_ids: dict[str, str] = field(default_factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.runs / STATE_DIR

    def write(self) -> None:
        jobs = [
            {**dataclasses.asdict(job), "id": self.job_ids.get(name, "")}
            for name, job in self.jobs.items()
        ]
        write_json(self.state_dir / FILE, {"experiment": self.experiment, "jobs": jobs})


def read_record(runs: str | Path) -> Record | None:
    """The record of a folder; None if nothing was submitted for it."""
    folder = Path(runs).resolve()
    try:
        content = json.loads((folder / STATE_DIR / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = Record(folder, content["experiment"])
    for line in content["jobs"]:
        record.job_ids[line["name"]] = line.pop("id")
        record.jobs[line["name"]] = Job(**line)
    return record


def require_record(arguments: list[str]) -> Record:
    """The record of the folder that the command line names. Raises UserError without one."""
    if len(arguments) != 1 or arguments[0].startswith("-") or split_arguments(arguments)[1]:
        raise UserError("the argument is one folder, the runs= of slurm.run or slurm.submit")
    record = read_record(arguments[0])
    if record is None:
        raise UserError(
            f"{arguments[0]} holds no experiment (no {STATE_DIR}/{FILE}):"
            " slurm.run and slurm.submit make one"
        )
    return record


def local_runner(record: Record) -> run_lock.Owner:
    """The process that runs the jobs on this machine (executor=local); {} if there is none."""
    return run_lock.living_owner(record.state_dir)


def slurm_states(record: Record, *, accounts_only: bool = False) -> dict[str, SlurmState]:
    """The state of each job that was submitted, by name.

    sacct remembers all jobs, but lags behind: a requeued job may still be called failed, and one
    that has ended running. So squeue, which also shows jobs that ended a few minutes ago, has the
    last word; with `accounts_only` it is not asked. A job that neither knows is FORGOTTEN: it has
    ended, and the cluster keeps no accounts. Raises SlurmError if squeue does not answer: an empty
    queue would mean that all jobs have ended.
    """
    names = {number: name for name, number in record.job_ids.items() if number}
    if not names:
        return {}
    found: dict[str, SlurmState] = {}
    for number, state, nodes in table(accounts(list(names)), 3):
        if number in names and state:
            nodes = nodes.replace("None assigned", "")
            found[names[number]] = SlurmState(state.split()[0], nodes)
    if accounts_only:
        silent = SlurmState(FORGOTTEN, "", "Slurm does not answer")
        return {**dict.fromkeys(names.values(), silent), **found}
    me = ["--me"] if os.geteuid() else []
    squeue = ("squeue", "-h", "-r", "-t", "all", *me, "-o", "%i|%T|%N|%r")
    queued: dict[str, SlurmState] = {}
    for number, state, nodes, reason in table(ask_slurm(*squeue, attempts=3), 4):
        if number in names:
            waits = state in ACTIVE_STATES and reason != "None"
            queued[names[number]] = SlurmState(state, nodes, reason if waits else "")
    for name in set(names.values()) - queued.keys():
        state, nodes, _ = found.get(name, SlurmState(""))
        if state in ACTIVE_STATES or not state:
            says = f"sacct still says {state}" if state else "no accounts tell how it ended"
            reason = f"Slurm has forgotten this job; {says}"
            found[name] = SlurmState(FORGOTTEN, nodes, reason)
    return {**found, **queued}


def accounts(numbers: list[str]) -> str:
    """What sacct says of jobs; empty, with a warning, where it does not answer.

    A cluster may keep no accounts at all, of which nobody needs to be told each time.
    """
    rows = []
    for start in range(0, len(numbers), JOBS_A_CALL):
        ids = ",".join(numbers[start : start + JOBS_A_CALL])
        try:
            rows.append(
                ask_slurm("sacct", "-n", "-P", "-X", "-j", ids, "-o", "JobID,State,NodeList")
            )
        except SlurmError as error:
            if "disabled" not in str(error) and not isinstance(error, SlurmMissing):
                print(f"warning: {error}", file=sys.stderr, flush=True)
            break
    return "\n".join(rows)


def active_jobs(record: Record) -> set[str]:
    """Names of the jobs that are in Slurm's queue or running. Raises SlurmError."""
    states = slurm_states(record)
    return {name for name, found in states.items() if found.state in ACTIVE_STATES}


def table(text: str, columns: int) -> list[list[str]]:
    """The rows of a Slurm command that prints columns with | between; other lines are left out."""
    rows = (line.split("|", columns - 1) for line in text.splitlines())
    return [row for row in rows if len(row) == columns]
