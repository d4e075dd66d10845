"""What a job runs, as its nodes need to know it, and which node of which Slurm job this is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cjepa_dist.runtime.environment import read_int


@dataclass(frozen=True)
class JobSpec:
    """The commands of a job, each [module, argument, ...], and how each node runs them."""

    name: str
    commands: list[list[str]]
    state_dir: str = ""  # RUNS/.slurm; empty = log to stdout, no events
    processes: int = 1  # on each node
    grace: int = 60  # seconds that a training has for its checkpoint after a signal
    max_restarts: int = 100
    retries: int = 0  # starts from the same checkpoint after a crash or a hang
    environment: dict[str, str] = field(default_factory=dict)
    scratch: str = ""  # folder on the node's own disk; may hold $VARIABLES
    stage_data: bool = False
    gpus: int = 0  # that each node must have


@dataclass(frozen=True)
class SlurmContext:
    """The Slurm job that this process belongs to, and its node in it; `job_id` "" without Slurm."""

    job_id: str = ""
    restart_count: int = 0
    node_rank: int = 0
    num_nodes: int = 1
    array_task: str = ""  # ARRAY_TASK, of a task of an array

    @property
    def queue_id(self) -> str:
        """What the job is called in the queue.

        One task of an array has the number of the whole array: by that, all would be requeued.
        """
        return self.array_task or self.job_id

    @staticmethod
    def from_environment() -> SlurmContext:
        array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
        return SlurmContext(
            os.environ.get("SLURM_JOB_ID", ""),
            read_int("SLURM_RESTART_COUNT", 0),
            read_int("SLURM_NODEID", 0),
            read_int("SLURM_NNODES", 1, least=1),
            f"{array}_{task}" if array and task else "",
        )
