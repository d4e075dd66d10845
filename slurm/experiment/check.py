"""Whether the trainings of an experiment can run on its cluster, before one of them is queued.

each training's config ──nodes x processes of its stage──> batch, ctt.fraction, engine
                       ──memory_gb, gpu_memory_gb, if they are given──> the step's memory
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import cast

from cjepa_dist.config import command_line
from cjepa_dist.config.parallel import check_batch_divides, check_engine
from cjepa_dist.config.schema import TrainAloe, TrainConfig, TrainWorldModel
from cjepa_dist.errors import UserError
from slurm.experiment.job import Job, job_spec
from slurm.experiment.schema import Cluster, cluster_of_stage

PROCESS_GB = 1.0  # interpreter and libraries, or the context of CUDA
GB = 1e9


def check_trainings(jobs: list[Job], cluster: Cluster) -> None:
    """Raises UserError for the first training that its nodes and processes cannot run."""
    for job in jobs:
        if not job.is_training:
            continue
        of_stage = cluster_of_stage(cluster, job.stage)
        processes = job_spec(job, cluster, Path()).processes
        world_size = of_stage.nodes * processes
        config = training_config(job.stage, tuple(job.commands[0][1:]))
        engine = config.loop.engine if config.loop.engine != "auto" else "ddp"
        try:
            check_batch_divides(config, world_size)
            if engine != "ddp" and world_size == 1:
                raise UserError(f"engine {engine} shares work between processes, and there is one")
            check_engine(engine, config)
            check_memory(job, of_stage, engine, processes)
        except UserError as error:
            where = f"{of_stage.nodes} nodes x {processes} processes (its stage is {job.stage})"
            advice = f"change the config, or set stages.{job.stage} in the YAML that cluster= names"
            raise UserError(f"{job.name} on {where}: {error}; {advice}") from error


def training_config(stage: str, arguments: tuple[str, ...]) -> TrainConfig:
    """The config of a training, from the arguments of its command. Raises UserError."""
    schema: type = TrainWorldModel if stage == "world_model" else TrainAloe
    return cast(TrainConfig, command_line.parse(schema, arguments))


def check_memory(job: Job, cluster: Cluster, engine: str, processes: int) -> None:
    """Raises UserError where a step needs more than a GPU, or the job's share of a node, has."""
    on_gpu = bool(cluster.gpus_per_node)
    limit = cluster.gpu_memory_gb if on_gpu else cluster.memory_gb
    if not limit:
        return
    # Trainings that differ by seed and folder alone need the same.
    alike = [part for part in job.commands[0][1:] if not part.startswith(("seed=", "run="))]
    one = step_gb(job.stage, (*alike, "run=none"), engine, cluster.nodes * processes) + PROCESS_GB
    needed, where = (one, "a GPU") if on_gpu else (one * processes, "a node")
    if needed > limit:
        field = "gpu_memory_gb" if on_gpu else "memory_gb"
        raise UserError(
            f"a step needs about {needed:.2g} GB on {where}, {field} says {limit}: take a smaller"
            " loop.global_batch_size or a larger loop.gradient_accumulation"
        )


@functools.cache
def step_gb(stage: str, arguments: tuple[str, ...], engine: str, world_size: int) -> float:
    """Estimated memory of one process, GB.

    tools.memory imports torch, and so is imported only where a cluster says how much it has.
    """
    config = training_config(stage, arguments)
    if config.loop.precision == "auto":
        config.loop.precision = "bf16"
    memory = importlib.import_module("tools.memory").estimate_memory
    return sum(memory(config, engine=engine, processes=world_size).values()) / GB
