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
from slurm.executors.execute import execute
from slurm.experiment.schema import Experiment


def main(experiment: Experiment) -> int:
    code = execute(dataclasses.replace(experiment, executor="local"))
    report = Path(experiment.runs) / "report" / "report.md"
    if report.is_file() and not experiment.dry_run:
        print(f"report: {report}, with pictures beside it")
        tensorboard = Path(sys.executable).with_name("tensorboard")
        program = tensorboard if tensorboard.is_file() else "tensorboard"
        print(f"curves: {program} --logdir {experiment.runs}")
    return code


if __name__ == "__main__":
    command_line.launch(Experiment, main)
