"""Submit an experiment to Slurm: `python -m slurm.submit EXPERIMENT.yaml runs=DIR [key=value ...]`.

EXPERIMENT.yaml is a file, or a name in configs/experiment.
Jobs that are finished or in the queue are left alone: the same command completes an experiment.
"""

from __future__ import annotations

from cjepa_dist.config import command_line
from slurm.executors.execute import execute
from slurm.experiment.schema import Experiment

if __name__ == "__main__":
    command_line.launch(Experiment, execute)
