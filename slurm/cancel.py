"""Cancel all jobs of an experiment: `python -m slurm.cancel RUNS`.

What trains writes a checkpoint first; `python -m slurm.resume RUNS` goes on from there.
"""

from __future__ import annotations

import subprocess

from cjepa_dist.errors import UserError
from slurm import record as records
from slurm.command import command


def main(arguments: list[str]) -> int:
    record = records.need(arguments)
    active = {name for name, (state, _, _) in records.states(record).items() if state in records.ACTIVE}
    if not active:
        print("no job of this experiment is in the queue")
        return 0
    done = subprocess.run(["scancel", *(record.ids[name] for name in active)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"scancel: {done.stderr}")
    print(f"{len(active)} jobs cancelled: {', '.join(sorted(active))}")
    return 0


if __name__ == "__main__":
    command(main, __doc__)
