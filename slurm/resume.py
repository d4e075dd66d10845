"""Run again what did not finish, and the jobs after it: `python -m slurm.resume RUNS`."""

from __future__ import annotations

from slurm.command import launch
from slurm.executors.execute import execute, restore_experiment
from slurm.record import require_record


def main(arguments: list[str]) -> int:
    return execute(restore_experiment(require_record(arguments)))


if __name__ == "__main__":
    launch(main, __doc__)
