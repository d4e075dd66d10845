"""An experiment as a list of jobs, each after those that it waits for.

    data ──> world_model ──> rollout ──> aloe ──> evaluate/aloe ──> report
                 └──> evaluate/world_model ──────────────────────────┘

A job and its folder have the same name, made of what differs between runs: stage, arm, swept
fields, seed. A job's number is no part of it, so a job that starts again finds its own folder.
With preflight=true all jobs also wait for the preflight.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path

from cjepa_dist.config import command_line
from cjepa_dist.errors import UserError, without_secrets
from slurm.experiment.job import Job, with_checksum
from slurm.experiment.planner import Planner
from slurm.experiment.schema import STAGES, Cluster, Experiment, read_cluster

SCHEMA_OF_COMMAND = {  # of the commands that take fields of the experiment
    "cjepa_dist.train_world_model": ("cjepa_dist.config.schema", "TrainWorldModel"),
    "cjepa_dist.train_aloe": ("cjepa_dist.config.schema", "TrainAloe"),
    "cjepa_dist.evaluate": ("cjepa_dist.evaluate", "Evaluate"),
    "cjepa_dist.evaluate_graph": ("cjepa_dist.evaluate_graph", "EvaluateGraph"),
    "cjepa_dist.evaluate_removal": ("cjepa_dist.evaluate_removal", "EvaluateRemoval"),
    "cjepa_dist.evaluate_symbolic": ("cjepa_dist.evaluate_symbolic", "EvaluateSymbolic"),
    "cjepa_dist.evaluate_counterfactual": (
        "cjepa_dist.evaluate_counterfactual",
        "EvaluateCounterfactual",
    ),
    "cjepa_dist.rollout": ("cjepa_dist.rollout", "Rollout"),
    "data_prep.simulate": ("data_prep.simulate.video", "Simulate"),
    "data_prep.merge": ("data_prep.merge", "Merge"),
    "data_prep.download": ("data_prep.download.__main__", "Download"),
    "data_prep.import_pickle": ("data_prep.import_pickle", "ImportPickle"),
}


def plan(experiment: Experiment) -> list[Job]:
    """All jobs of the experiment, in an order in which they may run.

    Raises UserError for a field or an arm that makes no sense.
    """
    if not experiment.arms:
        raise UserError(
            "config field arms: name at least one world model,"
            " such as arms.baseline.config=configs/world_model/full.yaml"
        )
    for field in ("aloe_arms", "counterfactual_arms"):
        if unknown := [name for name in getattr(experiment, field) if name not in experiment.arms]:
            arms = ", ".join(experiment.arms)
            raise UserError(f"config field {field}: no arm {unknown[0]}; arms are {arms}")
    if not experiment.seed:
        raise UserError("config field seed: name at least one")
    planner = Planner(experiment)
    jobs = planner.jobs()
    if experiment.preflight:
        first = preflight_job(read_cluster(experiment.cluster), planner.runs)
        jobs = [first, *(after_preflight(job, first) for job in jobs)]
    check_no_passwords(jobs)
    data = planner.data_fingerprint()
    return [replace(with_checksum(job), data=data) for job in jobs]


def check_no_passwords(jobs: list[Job]) -> None:
    """Raises UserError for a URL with a password in a command.

    Everybody on a node sees the arguments of its processes, and job files keep them.
    """
    for job in jobs:
        for part in itertools.chain.from_iterable(job.commands):
            if without_secrets(part) != part:
                raise UserError(
                    f"{job.name}: {part} would show its password to everybody on the nodes: give"
                    " the URL without user and password, and write these into ~/.netrc (mode 0600):"
                    " machine HOST login USER password PASSWORD"
                )


def preflight_job(cluster: Cluster, runs: Path) -> Job:
    command = ["slurm.jobs.preflight_worker", f"runs={runs}", f"gpus={cluster.gpus_per_node}"]
    return Job("preflight", "preflight", [command], [str(runs / "preflight.json")], [], [])


def after_preflight(job: Job, preflight: Job) -> Job:
    waits = job.needs or job.stage == "report"
    return job if waits else replace(job, needs=[preflight.name])


def check_commands(experiment: Experiment, jobs: list[Job]) -> None:
    """Checks all fields of all commands before anything runs.

    Raises UserError, naming the job and the field.
    """
    # The schemas of these are beside code that imports torch: read only where fields are given.
    given = {
        "cjepa_dist.evaluate": experiment.evaluate,
        "cjepa_dist.evaluate_graph": experiment.evaluate_graph,
        "cjepa_dist.evaluate_removal": experiment.evaluate_removal,
        "cjepa_dist.evaluate_symbolic": experiment.evaluate_symbolic,
        "cjepa_dist.evaluate_counterfactual": experiment.evaluate_counterfactual,
        "cjepa_dist.rollout": experiment.rollout or experiment.counterfactual_rollout,
    }
    for job in jobs:
        for module, *arguments in job.commands:
            if module in SCHEMA_OF_COMMAND and given.get(module, True):
                schema_module, name = SCHEMA_OF_COMMAND[module]
                schema: type = getattr(importlib.import_module(schema_module), name)
                try:
                    command_line.parse(schema, arguments)
                except UserError as error:
                    raise UserError(f"{job.name}: {error}") from error


def jobs_of_stages(jobs: list[Job], stage: str) -> list[Job]:
    """The jobs that `stage=` names. Raises UserError for an unknown stage."""
    if stage == "all":
        return jobs
    names = [name.strip() for name in stage.split(",")]
    if unknown := [name for name in names if name not in STAGES]:
        raise UserError(
            f"config field stage={stage}: {unknown[0]!r} is none of all, {', '.join(STAGES)}"
        )
    return [job for job in jobs if job.stage in (*names, "preflight")]
