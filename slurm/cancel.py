"""Cancel all jobs of an experiment: `python -m slurm.cancel RUNS`.

What trains writes a checkpoint first; `python -m slurm.resume RUNS` goes on from there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess

from cjepa_dist.errors import UserError
from slurm import record as records
from slurm.command import launch


def main(arguments: list[str]) -> int:
    record = records.require_record(arguments)
    if owner := records.local_runner(record):
        if owner["host"] != socket.gethostname():
            raise UserError(
                f"these jobs run on {owner['host']}: cancel them there, or kill {owner['pid']} there"
            )
        os.kill(owner["pid"], signal.SIGTERM)
        print(f"process {owner['pid']}, which runs the jobs on this machine, was asked to stop")
        return 0
    active = {
        name
        for name, (state, _, _) in records.slurm_states(record).items()
        if state in records.ACTIVE_STATES
    }
    if not active:
        print("no job of this experiment is in the queue")
        return 0
    done = subprocess.run(
        ["scancel", *(record.job_ids[name] for name in active)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"scancel: {done.stderr}")
    print(f"{len(active)} jobs cancelled: {', '.join(sorted(active))}")
    return 0


if __name__ == "__main__":
    launch(main, __doc__)
