"""Cancel all jobs of an experiment: `python -m slurm.cancel RUNS`.

Trainings write a checkpoint first; `python -m slurm.resume RUNS` goes on from there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess

from cjepa_dist.errors import UserError
from slurm.command import launch
from slurm.record import active_jobs, local_runner, require_record


def main(arguments: list[str]) -> int:
    record = require_record(arguments)
    if owner := local_runner(record):
        host, pid = owner["host"], owner["pid"]
        if host != socket.gethostname():
            raise UserError(f"these jobs run on {host}: cancel them there, or kill {pid} there")
        os.kill(pid, signal.SIGTERM)
        print(f"process {pid}, which runs the jobs on this machine, was asked to stop")
        return 0
    active = sorted(active_jobs(record))
    if not active:
        print("no job of this experiment is in the queue")
        return 0
    command = ["scancel", *(record.job_ids[name] for name in active)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # A job may have ended in between, which scancel calls an error.
    if done.returncode and active_jobs(record):
        raise UserError(f"scancel: {done.stderr}")
    print(f"{len(active)} jobs cancelled: {', '.join(active)}")
    return 0


if __name__ == "__main__":
    launch(main, __doc__)
