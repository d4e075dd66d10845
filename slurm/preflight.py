"""Look at a cluster from inside before training there: `python -m slurm.preflight cluster=MY.yaml runs=DIR`.

Queues one job with the nodes and processes of a training (slurm/jobs/preflight_worker.py), waits, and says what it found: exit code 0, or 1 and why not.
`preflight=true` of slurm.submit puts the same job before all others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config import command_line, merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from slurm import record as records
from slurm.executor import submit_to_slurm
from slurm.job_state import job_states
from slurm.plan import preflight_job
from slurm.record import Record
from slurm.schema import Experiment, read_cluster


@dataclass
class Preflight:
    """Every rank sees its GPU, the folder is shared, all-reduce works and how fast."""

    runs: str = option(MISSING, "folder of the experiment, on a file system that all nodes see")
    cluster: str = option(MISSING, "facts of the cluster")


def main(config: Preflight) -> int:
    cluster, runs = read_cluster(config.cluster), Path(config.runs).resolve()
    experiment = merge.build(Experiment, {"runs": config.runs, "cluster": config.cluster})
    record = records.read_record(runs) or Record(runs, {})
    job = preflight_job(cluster, runs)
    Path(job.outputs[0]).unlink(missing_ok=True)
    submit_to_slurm(experiment, cluster, record, [job], set())
    state = ""
    while (outcome := job_states(record)[job.name]).active:
        if outcome.state != state:
            state = outcome.state
            print(f"{state.lower()} {outcome.nodes}{outcome.reason}".rstrip(), flush=True)
        time.sleep(2)
    if outcome.bad:
        print("\n".join([f"error: {outcome.reason}", *outcome.lines]))
        return 1
    print(Path(job.outputs[0]).read_text())
    return 0


if __name__ == "__main__":
    command_line.launch(Preflight, main)
