"""Check a cluster from inside before training there.

    python -m slurm.preflight cluster=MY.yaml runs=DIR

Queues one job with the nodes and processes of a training (slurm/jobs/preflight_worker.py), waits
for it, and prints what it found. Exit code 0, or 1 with the reason.
`preflight=true` of slurm.submit puts the same job before all others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config import command_line, merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from slurm.executors.execute import submit_to_slurm
from slurm.experiment.plan import preflight_job
from slurm.experiment.schema import Experiment, read_cluster
from slurm.job_state import JobState, job_states
from slurm.jobs.slurm_command import SlurmError
from slurm.record import Record, read_record


@dataclass
class Preflight:
    """Checks that each process sees its GPU and all see the folder, and times the all-reduce."""

    runs: str = option(
        MISSING, "folder of the experiment, on a file system that all nodes see", path=True
    )
    cluster: str = option(
        MISSING, "config of the cluster: a file, or a name in configs/slurm", path=True
    )


def main(config: Preflight) -> int:
    cluster, runs = read_cluster(config.cluster), Path(config.runs).resolve()
    experiment = merge.build(Experiment, {"runs": config.runs, "cluster": config.cluster})
    record = read_record(runs) or Record(runs, {})
    job = preflight_job(cluster, runs)
    Path(job.outputs[0]).unlink(missing_ok=True)
    submit_to_slurm(experiment, cluster, record, [job], set())
    before = ""
    while (state := wait_for_state(record, job.name)).active:
        if state.state != before:
            before = state.state
            print(f"{before.lower()} {state.nodes}{state.reason}".rstrip(), flush=True)
        time.sleep(2)
    if state.state != "DONE":
        print("\n".join([f"error: {state.reason}", *state.log_lines]))
        return 1
    print(Path(job.outputs[0]).read_text())
    return 0


def wait_for_state(record: Record, name: str) -> JobState:
    """The state of a job, as soon as Slurm answers."""
    while True:
        try:
            return job_states(record)[name]
        except SlurmError as error:
            print(error, flush=True)


if __name__ == "__main__":
    command_line.launch(Preflight, main)
