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

    @staticmethod
    def from_environment() -> SlurmContext:
        return SlurmContext(
            os.environ.get("SLURM_JOB_ID", ""),
            read_int("SLURM_RESTART_COUNT", 0),
            read_int("SLURM_NODEID", 0),
            read_int("SLURM_NNODES", 1, least=1),
        )
