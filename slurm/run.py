"""Run an experiment on this machine: `python -m slurm.run EXPERIMENT.yaml [key=value ...]`.

EXPERIMENT.yaml is a file, or a name in configs/experiment, such as quickstart. The jobs are those
that slurm.submit hands to Slurm; `at_once=N` runs N of them at the same time.
Jobs that are finished are left alone, and one that was interrupted resumes. Exit code 0 if all
jobs succeeded, 1 if one failed, 2 for bad input, 75 after a signal.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from cjepa_dist.config import command_line
from cjepa_dist.errors import EXIT_PREEMPTED
from slurm.executors.execute import execute
from slurm.experiment.schema import Experiment


def main(experiment: Experiment) -> int:
    code = execute(dataclasses.replace(experiment, executor="local"))
    if not experiment.dry_run and code != EXIT_PREEMPTED:
        print_results(Path(experiment.runs))
    return code


def print_results(runs: Path) -> None:
    """The report's summary, where the report is, and how to see the curves."""
    report = runs / "report"
    if (summary := report / "summary.txt").is_file():
        print(f"\n{summary.read_text(encoding='utf-8').rstrip()}\n")
    if (page := report / "report.html").is_file():
        print(f"report: {page} (open it in a browser)")
        tensorboard = Path(sys.executable).with_name("tensorboard")
        program = tensorboard if tensorboard.is_file() else "tensorboard"
        print(f"curves: {program} --logdir {runs}")


if __name__ == "__main__":
    command_line.launch(Experiment, main)
