"""Submit again what did not finish, and all that waits for it: `python -m slurm.resume RUNS`."""

from __future__ import annotations

from slurm import record as records
from slurm.command import command
from slurm.executor import hand_over, restore


def main(arguments: list[str]) -> int:
    return hand_over(restore(records.need(arguments)))


if __name__ == "__main__":
    command(main, __doc__)
