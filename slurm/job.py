"""One job of an experiment: its commands, its outputs and what it waits for."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.jobs.spec import JobSpec
from slurm.schema import Cluster


@dataclass(frozen=True)
class Job:
    """`outputs` are there when it is done; `needs` must have succeeded before it, `after` only have ended.

    Jobs with the same `array` are submitted as the tasks of one.
    """

    name: str
    stage: str
    commands: list[list[str]]
    outputs: list[str]
    needs: list[str]
    after: list[str]
    key: str = ""  # of the commands and the configs in them
    array: str = ""

    @property
    def is_training(self) -> bool:
        return self.stage in ("world_model", "aloe")

    @property
    def uses_all_nodes(self) -> bool:
        """Whether it takes all nodes, GPUs and processes of the cluster's facts."""
        return self.is_training or self.stage == "preflight"

    @property
    def folder(self) -> Path:
        """Of a training: its run folder."""
        return Path(self.outputs[0]).parent

    def done(self) -> bool:
        return all(Path(path).exists() for path in self.outputs)


def job_spec(job: Job, cluster: Cluster, home: Path) -> JobSpec:
    """What the job runs, as its nodes need to know it."""
    environment = dict(cluster.environment)
    processes = cluster.processes_per_node or cluster.gpus_per_node or 1
    grace = max(5, cluster.signal_delay - 5)
    return JobSpec(
        job.name, job.commands, str(home), processes=processes if job.uses_all_nodes else 1, grace=grace, max_restarts=cluster.max_restarts,
        environment=environment, scratch=cluster.scratch, stage_data=cluster.stage_data and job.is_training,
        gpus=cluster.gpus_per_node if job.is_training else 0,
    )  # fmt: skip


def with_checksum(job: Job) -> Job:
    """Adds a checksum of what the job will do, by its commands and the YAML files in them: whether what is there was made by the same."""
    text = json.dumps(job.commands)
    for command in job.commands:
        for part in command:
            if part.endswith(".yaml") and Path(part).is_file():
                text += Path(part).read_text()
    return replace(job, key=f"{zlib.crc32(text.encode()):08x}")
