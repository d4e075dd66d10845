"""Submit again what did not finish, and all that waits for it: `python -m slurm.resume RUNS`."""

from __future__ import annotations

from slurm import record as records
from slurm.command import launch
from slurm.executor import execute, restore_experiment


def main(arguments: list[str]) -> int:
    return execute(restore_experiment(records.require_record(arguments)))


if __name__ == "__main__":
    launch(main, __doc__)
