"""Submit an experiment: `python -m slurm.submit configs/experiment/clevrer.yaml runs=DIR [key=value ...]`.

What is finished or in the queue already is left alone, so that the same command also completes an experiment.
"""

from __future__ import annotations

from cjepa_dist.config import command_line
from slurm.executor import execute
from slurm.schema import Experiment

if __name__ == "__main__":
    command_line.launch(Experiment, execute)
