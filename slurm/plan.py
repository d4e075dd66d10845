"""An experiment as a list of jobs, each after those it needs (and, with preflight=true, after that).

    data ──> world_model/<arm>/seed_<n> ──> rollout/<arm>/seed_<n> ──> aloe/<arm>/seed_<n> ──> evaluate/aloe/<arm>/seed_<n> ──┐
                     └──────────────────────> evaluate/world_model/<arm>/seed_<n> ──────────────────────────────────────────> report

A folder is named by what differs between runs (arm, swept fields, seed), never by a job's number: a job that starts again finds its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cjepa_dist.config import command_line
from cjepa_dist.config.merge import flatten
from cjepa_dist.config.schema import TrainAloe, TrainWorldModel
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm.job import Job, with_checksum
from slurm.schema import STAGES, Cluster, Experiment, read_cluster
from slurm.sweep import combinations, is_swept, to_arguments

SCHEMA_OF_COMMAND = {  # of the commands that take fields of the user's
    "cjepa_dist.train_world_model": ("cjepa_dist.config.schema", "TrainWorldModel"),
    "cjepa_dist.train_aloe": ("cjepa_dist.config.schema", "TrainAloe"),
    "cjepa_dist.evaluate": ("cjepa_dist.evaluate", "Evaluate"),
    "cjepa_dist.evaluate_graph": ("cjepa_dist.evaluate_graph", "EvaluateGraph"),
    "cjepa_dist.rollout": ("cjepa_dist.rollout", "Rollout"),
    "data_prep.simulate": ("data_prep.simulate.video", "Simulate"),
    "data_prep.merge": ("data_prep.merge", "Merge"),
    "data_prep.import_pickle": ("data_prep.import_pickle", "ImportPickle"),
}


def plan(experiment: Experiment) -> list[Job]:
    """All jobs of the experiment, in an order that they may run in. Raises UserError for a field or arm that makes no sense."""
    if not experiment.arms:
        raise UserError(
            "config field arms: name at least one world model, such as arms.baseline.config=configs/world_model/full.yaml"
        )
    if not experiment.seed:
        raise UserError("config field seed: name at least one")
    runs = Path(experiment.runs).resolve()
    jobs: list[Job] = []
    data, source = data_job(experiment, runs, jobs)
    scored: list[str] = []
    models: list[tuple[str, int, Job]] = []
    last: list[Job] = []  # nobody waits for them, and they take long
    for seed in experiment.seed:
        control = None
        if experiment.control:
            control = world_model_job(
                experiment, runs, "own_slot", {"config": experiment.control}, seed, data, source
            )
            jobs.append(control)
        for arm, fields in expand_arms(experiment):
            model = world_model_job(experiment, runs, arm, fields, seed, data, source)
            models.append((arm, seed, model))
            jobs += [model, evaluate_world_model_job(experiment, model, control, data)]
            scored.append(jobs[-1].name)
    if experiment.aloe_config or experiment.rollout:
        for index, (arm, seed, model) in enumerate(models):
            rolled = runs / "rollout" / arm / f"seed_{seed}"
            command = [
                "cjepa_dist.rollout",
                f"world_model={model.run_dir}",
                f"data={data}",
                f"out={rolled}",
                *to_arguments(experiment.rollout),
            ]
            rollout = Job(
                f"rollout/{arm}/seed_{seed}",
                "rollout",
                [command],
                [str(rolled / "manifest.json")],
                [model.name],
                [],
            )
            jobs.append(rollout)
            if experiment.rollout.get("mode") == "counterfactual":
                last.append(evaluate_rollout_job(experiment, rollout, rolled, model, data))
            if not experiment.aloe_config:
                continue
            blind = (
                [("blind", {"blind": True})]
                if experiment.blind and index % (len(models) // len(experiment.seed)) == 0
                else []
            )
            for name, extra in [(arm, {}), *blind]:
                for suffix, fields in combinations(experiment.aloe, TrainAloe, experiment.sweep):
                    for number in experiment.aloe_seed or [seed]:
                        aloe = aloe_job(
                            experiment,
                            runs,
                            name + suffix,
                            {**fields, **extra},
                            seed,
                            number,
                            rolled,
                            [rollout.name],
                        )
                        jobs += [aloe, evaluate_aloe_job(experiment, aloe)]
                        scored.append(jobs[-1].name)
    extra_jobs = [
        *ground_truth_aloe_jobs(experiment, runs, models, data, source),
        *observed_slots_aloe_jobs(experiment, runs, data, source),
    ]
    scored += [job.name for job in [*extra_jobs, *last] if job.stage == "evaluate"]
    jobs += [*extra_jobs, *last]
    jobs.append(
        Job(
            "report",
            "report",
            [["slurm.report", str(runs)]],
            [str(runs / "report" / "report.md")],
            [],
            scored,
        )
    )
    if experiment.preflight:
        first = preflight_job(read_cluster(experiment.cluster), runs)
        jobs = [
            first,
            *(
                replace(job, needs=job.needs or [first.name]) if job.stage != "report" else job
                for job in jobs
            ),
        ]
    return [with_checksum(job) for job in jobs]


def preflight_job(cluster: Cluster, runs: Path) -> Job:
    command = ["slurm.jobs.preflight_worker", f"runs={runs}", f"gpus={cluster.gpus_per_node}"]
    return Job("preflight", "preflight", [command], [str(runs / "preflight.json")], [], [])


def data_job(experiment: Experiment, runs: Path, jobs: list[Job]) -> tuple[str | Path, list[str]]:
    """(folder or URL of the shards, names of the jobs that make it)."""
    if is_remote(experiment.data):
        return experiment.data, []
    if experiment.data:
        if not (Path(experiment.data) / "manifest.json").is_file():
            raise UserError(
                f"config field data={experiment.data}: no data set is there (no manifest.json)"
            )
        return Path(experiment.data).resolve(), []
    out = runs / "data"
    config = [experiment.prepare_config] if experiment.prepare_config else []
    command = [f"data_prep.{experiment.prepare}", *config, *to_arguments(experiment.prepare_fields)]
    parts = (
        [runs / "data.parts" / str(index) for index in range(experiment.parts)]
        if experiment.parts > 1
        else []
    )
    for index, part in enumerate(parts):
        line = [*command, f"out={part}", f"part={index}/{len(parts)}"]
        jobs.append(
            Job(
                f"data/part_{index}",
                "data",
                [line],
                [str(part / "manifest.json")],
                [],
                [],
                array="data/part",
            )
        )
    last = (
        ["data_prep.merge", f"out={out}", f"parts={runs / 'data.parts'}"]
        if parts
        else [*command, f"out={out}"]
    )
    jobs.append(
        Job("data", "data", [last], [str(out / "manifest.json")], [job.name for job in jobs], [])
    )
    return out, ["data"]


def expand_arms(experiment: Experiment) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms with one value a field; names of swept ones say which."""
    for name, fields in experiment.arms.items():
        if not isinstance(fields, dict) or not isinstance(fields.get("config"), str):
            raise UserError(
                f"config field arms.{name}: needs config=FILE, and may have fields of train_world_model beside it"
            )
        own = {key: value for key, value in flatten(fields) if key != "config"}
        for suffix, values in combinations(
            {**dict(flatten(experiment.world_model)), **own}, TrainWorldModel, experiment.sweep
        ):
            yield name + suffix, {"config": fields["config"], **values}


def world_model_job(
    experiment: Experiment,
    runs: Path,
    arm: str,
    fields: dict[str, Any],
    seed: int,
    data: str | Path,
    source: list[str],
) -> Job:
    if (
        arm == "own_slot"
    ):  # compared with all arms, so it takes their common fields, without the sweeps
        fields = {
            **{
                key: value
                for key, value in flatten(experiment.world_model)
                if not is_swept(key, value, TrainWorldModel)
            },
            **fields,
        }
    values = {key: value for key, value in fields.items() if key != "config"}
    name = f"world_model/{arm}/seed_{seed}"
    command = [
        "cjepa_dist.train_world_model",
        fields["config"],
        *to_arguments(values),
        f"seed={seed}",
        f"data={data}",
        f"run={runs / name}",
    ]
    return Job(name, "world_model", [command], [str(runs / name / "done.json")], list(source), [])


def evaluate_world_model_job(
    experiment: Experiment, model: Job, control: Job | None, data: str | Path
) -> Job:
    own = [f"own_slot={control.run_dir}"] if control else []
    commands = [
        [
            "cjepa_dist.evaluate",
            f"run={model.run_dir}",
            f"split={experiment.split}",
            *own,
            *to_arguments(experiment.evaluate),
        ]
    ]
    outputs = [str(model.run_dir / "eval" / f"world_model_{experiment.split}.json")]
    if experiment.graphs:
        fields = [
            f"data={data}",
            f"split={experiment.split}",
            *to_arguments(experiment.evaluate_graph),
        ]
        commands.append(["cjepa_dist.evaluate_graph", f"run={model.run_dir}", *fields])
        outputs.append(str(model.run_dir / "eval" / f"graphs_{experiment.split}.json"))
    needs = [model.name, *([control.name] if control else [])]
    return Job(f"evaluate/{model.name}", "evaluate", commands, outputs, needs, [])


def evaluate_rollout_job(
    experiment: Experiment, rollout: Job, rolled: Path, model: Job, data: str | Path
) -> Job:
    """What the world model says would have happened: by question programs, and against re-simulation where there is truth."""
    split, folder = experiment.split, model.run_dir / "eval"
    commands = [
        ["cjepa_dist.evaluate_symbolic", f"data={rolled}", f"split={split}", f"probe_data={data}"]
    ]
    outputs = [
        str(folder / f"symbolic_{experiment.rollout.get('divergence', 'paired')}_{split}.json")
    ]
    if experiment.graphs:
        commands.append(
            [
                "cjepa_dist.evaluate_counterfactual",
                f"run={model.run_dir}",
                f"data={data}",
                f"split={split}",
            ]
        )
        outputs.append(str(folder / f"counterfactual_{split}.json"))
    return Job(f"evaluate/{rollout.name}", "evaluate", commands, outputs, [rollout.name], [])


def aloe_job(
    experiment: Experiment,
    runs: Path,
    arm: str,
    fields: dict[str, Any],
    seed: int,
    number: int,
    rolled: Path,
    needs: list[str],
) -> Job:
    name = f"aloe/{arm}/seed_{seed}" + (
        f"_aloe_{number}" if number != seed or len(experiment.aloe_seed) > 1 else ""
    )
    command = [
        "cjepa_dist.train_aloe",
        experiment.aloe_config,
        *to_arguments(fields),
        f"seed={number}",
        f"data={rolled}",
        f"run={runs / name}",
    ]
    return Job(name, "aloe", [command], [str(runs / name / "done.json")], list(needs), [])


def evaluate_aloe_job(experiment: Experiment, aloe: Job) -> Job:
    command = [
        "cjepa_dist.evaluate",
        f"run={aloe.run_dir}",
        f"split={experiment.split}",
        *to_arguments(experiment.evaluate),
    ]
    output = str(aloe.run_dir / "eval" / f"vqa_{experiment.split}.json")
    return Job(f"evaluate/{aloe.name}", "evaluate", [command], [output], [aloe.name], [])


def ground_truth_aloe_jobs(
    experiment: Experiment,
    runs: Path,
    models: list[tuple[str, int, Job]],
    data: str | Path,
    source: list[str],
) -> list[Job]:
    """ALOEs trained on what the simulator says, and what each of them reads in the rollout of every world model: the same reader for all,
    so that no noise between trainings stands between world models. RUNS/read/<arm>/seed_<n>/reader_<k>/vqa_<split>.json."""
    if not experiment.readers:
        return []
    if not experiment.aloe_config or experiment.rollout.get("mode") != "counterfactual":
        raise UserError(
            "config field readers: they read what would have happened; set aloe_config and rollout.mode=counterfactual"
        )
    rolled = runs / "rollout" / "truth"
    shared = {
        key: value
        for key, value in experiment.rollout.items()
        if key in ("videos", "splits", "count", "shard_mb")
    }
    command = [
        "cjepa_dist.rollout",
        "mode=truth",
        f"data={data}",
        f"out={rolled}",
        *to_arguments(shared),
    ]
    jobs = [Job("rollout/truth", "rollout", [command], [str(rolled / "manifest.json")], source, [])]
    fields = {
        key: value for key, value in experiment.aloe.items() if not is_swept(key, value, TrainAloe)
    } | {"protocol": "counterfactual"}
    for number in experiment.readers:
        reader = aloe_job(
            experiment, runs, "reader", fields, number, number, rolled, [jobs[0].name]
        )
        jobs += [reader, evaluate_aloe_job(experiment, reader)]
        for arm, seed, _ in models:
            out = runs / "read" / arm / f"seed_{seed}" / f"reader_{number}"
            command = [
                "cjepa_dist.evaluate",
                f"run={reader.run_dir}",
                f"data={runs / 'rollout' / arm / f'seed_{seed}'}",
                f"out={out}",
            ]
            command += [f"split={experiment.split}", *to_arguments(experiment.evaluate)]
            needs = [reader.name, f"rollout/{arm}/seed_{seed}"]
            name = f"evaluate/read/{arm}/seed_{seed}/reader_{number}"
            jobs.append(
                Job(
                    name,
                    "evaluate",
                    [command],
                    [str(out / f"vqa_{experiment.split}.json")],
                    needs,
                    [],
                )
            )
    return jobs


def observed_slots_aloe_jobs(
    experiment: Experiment, runs: Path, data: str | Path, source: list[str]
) -> list[Job]:
    """An ALOE that sees the videos as they are, and nothing predicted."""
    if not (experiment.observed and experiment.aloe_config):
        return []
    fields = {
        key: value for key, value in experiment.aloe.items() if not is_swept(key, value, TrainAloe)
    } | {"protocol": "published"}
    seed = experiment.seed[0]
    aloe = aloe_job(experiment, runs, "observed", fields, seed, seed, Path(data), source)
    return [aloe, evaluate_aloe_job(experiment, aloe)]


# ---------------------------------------------------------------------------------------------------------------------


def check_commands(experiment: Experiment, jobs: list[Job]) -> None:
    """Every command that takes fields against its schema, before anything is queued. Raises UserError, naming job and field."""
    heavy = {
        "cjepa_dist.evaluate": experiment.evaluate,
        "cjepa_dist.evaluate_graph": experiment.evaluate_graph,
        "cjepa_dist.rollout": experiment.rollout,
    }  # they import torch
    for job in jobs:
        for module, *arguments in job.commands:
            if module in SCHEMA_OF_COMMAND and heavy.get(module, True):
                place, name = SCHEMA_OF_COMMAND[module]
                kind: type = getattr(importlib.import_module(place), name)
                try:
                    command_line.parse(kind, arguments)
                except UserError as error:
                    raise UserError(f"{job.name}: {error}") from error


def jobs_of_stages(jobs: list[Job], stage: str) -> list[Job]:
    """The jobs of `stage=`. Raises UserError for a stage that there is not."""
    if stage == "all":
        return jobs
    names = [name.strip() for name in stage.split(",")]
    if unknown := [name for name in names if name not in STAGES]:
        raise UserError(
            f"config field stage={stage}: {unknown[0]!r} is none of all, {', '.join(STAGES)}"
        )
    return [job for job in jobs if job.stage in (*names, "preflight")]
