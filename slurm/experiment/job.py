"""One job of an experiment: its commands, its outputs and what it waits for."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.experiment.schema import Cluster, cluster_of_stage
from slurm.jobs.spec import JobSpec


@dataclass(frozen=True)
class Job:
    """It is done when all `outputs` exist.

    The jobs in `needs` must have succeeded before it starts, those in `after` only have ended.
    Jobs with the same `array` are submitted as the tasks of one Slurm array.
    """

    name: str
    stage: str
    commands: list[list[str]]  # each [module, argument, ...]
    outputs: list[str]
    needs: list[str]
    after: list[str]
    checksum: str = ""  # see `with_checksum`
    array: str = ""
    data: str = ""  # fingerprint of the experiment's data, where it does not make them itself
    inputs: str = ""  # of an import: names, sizes and times of the files that it reads

    @property
    def is_training(self) -> bool:
        return self.stage in ("world_model", "aloe")

    @property
    def uses_all_nodes(self) -> bool:
        """Whether it takes all nodes, GPUs and processes that the cluster's config names."""
        return self.is_training or self.stage == "preflight"

    @property
    def run_dir(self) -> Path:
        """Of a training: its run directory."""
        return Path(self.outputs[0]).parent

    def missing_output(self) -> str | None:
        return next((path for path in self.outputs if not Path(path).exists()), None)

    def done(self) -> bool:
        return self.missing_output() is None


def job_spec(job: Job, cluster: Cluster, state_dir: Path) -> JobSpec:
    """What the job runs, as its nodes need to know it."""
    cluster = cluster_of_stage(cluster, job.stage)
    processes = cluster.processes_per_node or cluster.gpus_per_node or 1
    return JobSpec(
        job.name,
        job.commands,
        str(state_dir),
        processes=processes if job.uses_all_nodes else 1,
        grace=max(5, cluster.signal_delay - 5),
        max_restarts=cluster.max_restarts,
        retries=cluster.retries if job.is_training else 0,
        environment=dict(cluster.environment),
        scratch=cluster.scratch,
        stage_data=cluster.stage_data and job.is_training,
        gpus=cluster.gpus_per_node if job.is_training else 0,
    )


def with_checksum(job: Job) -> Job:
    """Adds a checksum of what the job does: outputs with another one were made differently.

    It covers the commands and, for the config files in them, their content but not their path.
    """
    parts = [[content_or_text(part) for part in command] for command in job.commands]
    return replace(job, checksum=f"{zlib.crc32(json.dumps(parts).encode()):08x}")


def content_or_text(argument: str) -> str:
    is_config = argument.endswith(".yaml") and Path(argument).is_file()
    return Path(argument).read_text() if is_config else argument
