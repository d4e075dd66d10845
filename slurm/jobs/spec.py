"""What a job runs, as its nodes need to know it, and which node of which Slurm job this is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class JobSpec:
    """A job: commands in order, each [module, argument, ...]; `processes` a node and `grace` (s) for a training's checkpoint."""

    name: str
    commands: list[list[str]]
    home: str = ""  # RUNS/.slurm; empty = log to stdout, no events
    processes: int = 1
    grace: int = 60
    max_restarts: int = 100
    environment: dict[str, str] = field(default_factory=dict)
    scratch: str = ""  # of the node's own, with $VARIABLES
    stage_data: bool = False
    gpus: int = 0  # that this node must have


@dataclass(frozen=True)
class SlurmContext:
    """Where in a Slurm job this process is; job "" outside of Slurm."""

    job: str
    restart: int
    node: int
    nodes: int

    @staticmethod
    def from_environment() -> SlurmContext:
        env = os.environ
        number = {
            key: int(env.get(f"SLURM_{key}", 0)) for key in ("RESTART_COUNT", "NODEID", "NNODES")
        }
        return SlurmContext(
            env.get("SLURM_JOB_ID", ""),
            number["RESTART_COUNT"],
            number["NODEID"],
            max(1, number["NNODES"]),
        )
