"""What was submitted, in RUNS/.slurm: jobs and their numbers; and what became of them, from squeue, sacct and the jobs' own events.

RUNS/.slurm/experiment.json    the experiment, and each job with the number it was last submitted under
RUNS/.slurm/.lock*             who runs the jobs without Slurm (executor=local)
RUNS/.slurm/events/*.jsonl     a line when a job starts, stops, fails, is done (slurm/jobs/run.py)
RUNS/.slurm/logs/*.log         what the jobs said
RUNS/.slurm/submitit/<time>/   sbatch files and pickles of one submission
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.errors import UserError
from cjepa_dist.resilience import run_lock
from slurm.job import Job

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
    "STOPPED",
)


@dataclass
class Record:
    """The jobs of a folder of runs, and under which Slurm number each was last submitted ("" = never)."""

    runs: Path
    experiment: dict[str, Any]
    jobs: dict[str, Job] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.runs / ".slurm"

    def write(self) -> None:
        """Whole or not at all."""
        content = {
            "experiment": self.experiment,
            "jobs": [
                {**dataclasses.asdict(job), "id": self.ids.get(name, "")}
                for name, job in self.jobs.items()
            ],
        }
        temporary = self.home / "experiment.partial"
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, self.home / "experiment.json")


def read_record(runs: str | Path) -> Record | None:
    """The record of a folder; None if nothing was submitted for it."""
    folder = Path(runs).resolve()
    try:
        content = json.loads((folder / ".slurm" / "experiment.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = Record(folder, content["experiment"])
    for line in content["jobs"]:
        record.job_ids[line["name"]] = line.pop("id")
        record.jobs[line["name"]] = Job(**line)
    return record


def require_record(arguments: list[str]) -> Record:
    """The record that `python -m slurm.<something> RUNS` names. Raises UserError where there is none."""
    if len(arguments) != 1 or arguments[0].startswith("-") or "=" in arguments[0]:
        raise UserError("the argument is one folder, the runs= of slurm.submit")
    record = read_record(arguments[0])
    if record is None:
        raise UserError(
            f"{arguments[0]} holds no experiment (no .slurm/experiment.json): slurm.submit makes one"
        )
    return record


def local_runner(record: Record) -> run_lock.Owner:
    """The process that runs the jobs without Slurm (executor=local), if it lives, else {}."""
    side = record.state_dir / run_lock.LOCK_FILES[1]
    owner = run_lock.read_owner(side)
    return owner if owner and run_lock.is_alive(owner, side) else {}


def slurm_states(record: Record) -> dict[str, tuple[str, str, str]]:
    """{job: (Slurm's state, nodes, Slurm's reason)} of the jobs that Slurm knows."""
    names = {number: name for name, number in record.job_ids.items() if number}
    if not names or not shutil.which("squeue"):
        return {}
    found: dict[str, tuple[str, str, str]] = {}
    ids = ",".join(names)
    for line in query("sacct", "-n", "-P", "-X", "-j", ids, "-o", "JobID,State,NodeList"):
        number, state, nodes = line.split("|")
        if number in names:
            found[names[number]] = (state.split()[0], nodes.replace("None assigned", ""), "")
    # After sacct, and stronger: that still calls a job dead which is already back in the queue.
    me = ["--me"] if os.geteuid() else []
    for line in query("squeue", "-h", "-r", *me, "-o", "%i|%T|%N|%r"):
        number, state, nodes, reason = line.split("|")
        if number in names:
            found[names[number]] = (state, nodes, "" if reason == "None" else reason)
    return found


def query(*command: str) -> list[str]:
    """Lines of a Slurm command; none, with a warning, where it fails (a cluster may keep no accounts)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"warning: {command[0]}: {error}")
        return []
    if done.returncode:
        print(f"warning: {command[0]}: {' '.join(done.stderr.split())}")
        return []
    return [line for line in done.stdout.splitlines() if re.search(r"\S", line)]
