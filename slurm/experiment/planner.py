"""Makes the jobs of an experiment; `plan.plan` is what others call.

One method for each kind of job. The order in which jobs are listed is one in which they may run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cjepa_dist.config.locate import find_config
from cjepa_dist.config.merge import flatten
from cjepa_dist.config.schema import TrainAloe, TrainWorldModel
from cjepa_dist.data.format.fingerprint import dataset_fingerprint, fingerprint_of
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from slurm.experiment.job import Job
from slurm.experiment.schema import Experiment
from slurm.experiment.sweep import combinations, to_arguments, without_sweeps

INPUT_FIELDS = {"source", "questions", "annotations"}  # of an importer


class Model(NamedTuple):
    """A world model of the experiment and the job that trains it."""

    arm: str
    seed: int
    job: Job


class Planner:
    """Makes the jobs of one experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.runs = Path(experiment.runs).resolve()
        self.data: str | Path = self.runs / "data"
        self.data_jobs: list[Job] = []
        if is_remote(experiment.data):
            self.data = experiment.data
        elif experiment.data:
            self.data = existing_data(experiment.data)
        else:
            self.data_jobs = self.prepare_data()
        self.needs_data = [job.name for job in self.data_jobs[-1:]]

    def data_fingerprint(self) -> str:
        """That of a data set which is there already; "" for one of this experiment, and for a URL.

        Data at a URL are compared by each training when it starts.
        """
        if self.data_jobs or is_remote(str(self.data)):
            return ""
        return fingerprint_of(dataset_fingerprint(Manifest.load(self.data)))

    def jobs(self) -> list[Job]:
        experiment, jobs = self.experiment, list(self.data_jobs)
        models: list[Model] = []
        for seed in experiment.seed:
            control = self.control(seed) if experiment.control else None
            jobs += [control] if control else []
            for arm, fields in self.arms():
                models.append(Model(arm, seed, self.world_model(arm, fields, seed)))
                jobs += [models[-1].job, self.evaluate_world_model(models[-1].job, control)]
        slow: list[Job] = []  # no job needs these, so they are submitted last
        read = [model.arm for model in models if self.has_aloe(model)]
        for model in models:
            with_aloe = model.arm in read
            if with_aloe or experiment.rollout:
                rollout = self.rollout(model)
                jobs.append(rollout)
                if self.rolls_out_counterfactuals():
                    slow.append(self.evaluate_rollout(rollout, model.job))
                if with_aloe:
                    blind = experiment.blind and model.arm == read[0]
                    jobs += self.aloes(model, rollout, blind)
            if experiment.counterfactual_rollout and is_arm(model, experiment.counterfactual_arms):
                jobs += self.counterfactual_rollouts(model)
        jobs += [*self.shared_readers(models), *self.observed_aloe(), *slow]
        evaluations = [job.name for job in jobs if job.stage == "evaluate"]
        outputs = [str(self.runs / "report" / name) for name in ("report.html", "report.md")]
        command = ["slurm.report", str(self.runs)]
        return [*jobs, Job("report", "report", [command], outputs, [], evaluations)]

    def prepare_data(self) -> list[Job]:
        """The jobs that make the data, the last one with all of it."""
        experiment, out = self.experiment, self.runs / "data"
        command = [f"data_prep.{experiment.prepare}"]
        if experiment.prepare_config:
            command.append(config_path(experiment.prepare, experiment.prepare_config))
        first, fields = self.download()
        command += to_arguments(fields)
        manifest = str(out / "manifest.json")
        inputs = describe_inputs(fields)
        if experiment.parts == 1:
            commands = [*first, [*command, f"out={out}"]]
            return [Job("data", "data", commands, [manifest], [], [], inputs=inputs)]
        folder, jobs = self.runs / "data.parts", []
        for index in range(experiment.parts):
            part = folder / str(index)
            one = [*command, f"out={part}", f"part={index}/{experiment.parts}"]
            output = str(part / "manifest.json")
            name, array = f"data/part_{index}", "data/part"
            jobs.append(Job(name, "data", [one], [output], [], [], array=array, inputs=inputs))
        merge = ["data_prep.merge", f"out={out}", f"parts={folder}"]
        needs = [job.name for job in jobs]
        return [*jobs, Job("data", "data", [merge], [manifest], needs, [])]

    def download(self) -> tuple[list[list[str]], dict[str, Any]]:
        """The command that downloads the public files, and `prepare_fields` with their paths."""
        experiment = self.experiment
        given, fields = dict(experiment.download), dict(experiment.prepare_fields)
        if not given:
            return [], fields
        if experiment.parts > 1:
            raise UserError("config field download: needs parts=1; the parts would all download")
        folder = Path(os.path.expanduser(str(given.pop("out", self.runs / "public")))).resolve()
        for name in INPUT_FIELDS & set(fields):
            fields[name] = str(folder / str(fields[name]))
        return [["data_prep.download", *to_arguments(given), f"out={folder}"]], fields

    def arms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, fields) of each arm and each combination of its swept fields."""
        experiment = self.experiment
        shared = dict(flatten(experiment.world_model))
        for name, fields in experiment.arms.items():
            if not isinstance(fields, dict) or not isinstance(fields.get("config"), str):
                raise UserError(
                    f"config field arms.{name}: needs config=FILE, and may have fields of"
                    " train_world_model beside it"
                )
            own = {key: value for key, value in flatten(fields) if key != "config"}
            found = combinations({**shared, **own}, TrainWorldModel, experiment.sweep)
            for suffix, values in found:
                yield name + suffix, {"config": fields["config"], **values}

    def control(self, seed: int) -> Job:
        """The control takes the fields that all arms share, but not their sweeps."""
        fields = without_sweeps(self.experiment.world_model, TrainWorldModel)
        return self.world_model("own_slot", {"config": self.experiment.control, **fields}, seed)

    def world_model(self, arm: str, fields: dict[str, Any], seed: int) -> Job:
        name = f"world_model/{arm}/seed_{seed}"
        command = [
            "cjepa_dist.train_world_model",
            config_path("world_model", fields["config"]),
            *to_arguments({key: value for key, value in fields.items() if key != "config"}),
            f"seed={seed}",
            f"data={self.data}",
            f"run={self.runs / name}",
        ]
        output = str(self.runs / name / "done.json")
        return Job(name, "world_model", [command], [output], list(self.needs_data), [])

    def evaluate_world_model(self, model: Job, control: Job | None) -> Job:
        experiment, split = self.experiment, self.experiment.split
        run, folder = f"run={model.run_dir}", model.run_dir / "eval"
        own_slot = [f"own_slot={control.run_dir}"] if control else []
        fields = to_arguments(experiment.evaluate)
        commands = [["cjepa_dist.evaluate", run, f"split={split}", *own_slot, *fields]]
        outputs = [str(folder / f"world_model_{split}.json")]
        data = [f"data={self.data}", f"split={split}"]
        if experiment.graphs:
            fields = to_arguments(experiment.evaluate_graph)
            commands.append(["cjepa_dist.evaluate_graph", run, *data, *fields])
            outputs.append(str(folder / f"graphs_{split}.json"))
        if experiment.removal:
            fields = to_arguments(experiment.evaluate_removal)
            commands.append(["cjepa_dist.evaluate_removal", run, *data, *fields])
            outputs.append(str(folder / f"removal_{split}.json"))
        needs = [model.name, *([control.name] if control else [])]
        return Job(f"evaluate/{model.name}", "evaluate", commands, outputs, needs, [])

    def rolls_out_counterfactuals(self) -> bool:
        return self.experiment.rollout.get("mode") == "counterfactual"

    def rollout(self, model: Model) -> Job:
        name = f"rollout/{model.arm}/seed_{model.seed}"
        out = self.runs / name
        command = [
            "cjepa_dist.rollout",
            f"world_model={model.job.run_dir}",
            f"data={self.data}",
            f"out={out}",
            "replace_stale=true",
            *to_arguments(self.experiment.rollout),
        ]
        output = str(out / "manifest.json")
        return Job(name, "rollout", [command], [output], [model.job.name], [])

    def has_aloe(self, model: Model) -> bool:
        """Whether an ALOE reads the rollout of this world model."""
        return bool(self.experiment.aloe_config) and is_arm(model, self.experiment.aloe_arms)

    def counterfactual_rollouts(self, model: Model) -> list[Job]:
        """The worlds without an object, the same if nothing changes, and their evaluation."""
        fields = self.experiment.counterfactual_rollout
        place, names = f"{model.arm}/seed_{model.seed}", ("counterfactual", "factual")
        folders = {mode: self.runs / "rollout" / mode / place for mode in names}
        commands = [
            [
                "cjepa_dist.rollout",
                f"world_model={model.job.run_dir}",
                f"data={self.data}",
                f"out={out}",
                "replace_stale=true",
                f"mode={mode}",
                *to_arguments(fields),
            ]
            for mode, out in folders.items()
        ]
        outputs = [str(out / "manifest.json") for out in folders.values()]
        name = f"rollout/counterfactual/{place}"
        rollout = Job(name, "rollout", commands, outputs, [model.job.name], [])
        rule = fields.get("divergence", "paired")
        evaluation = self.evaluate_rollout(rollout, model.job, rule)
        control, output = self.answer_by_programs(folders["factual"], model.job, "factual")
        evaluation.commands.append(control)
        evaluation.outputs.append(output)
        return [rollout, evaluation]

    def answer_by_programs(self, rollout: Path, model: Job, rule: str) -> tuple[list[str], str]:
        """The command by which question programs answer from a rollout, and its output."""
        split = self.experiment.split
        data = [f"data={rollout}", f"split={split}", f"probe_data={self.data}"]
        fields = to_arguments(self.experiment.evaluate_symbolic)
        output = model.run_dir / "eval" / f"symbolic_{rule}_{split}.json"
        out = f"out={output.parent}"
        return ["cjepa_dist.evaluate_symbolic", *data, out, *fields], str(output)

    def evaluate_rollout(self, rollout: Job, model: Job, rule: str = "") -> Job:
        """Question programs on the rollout, and where there is truth the counterfactual worlds."""
        split, folder = f"split={self.experiment.split}", model.run_dir / "eval"
        rule = rule or self.experiment.rollout.get("divergence", "paired")
        command, output = self.answer_by_programs(self.runs / rollout.name, model, rule)
        commands, outputs = [command], [output]
        if self.experiment.graphs:
            data = [f"run={model.run_dir}", f"data={self.data}", split]
            fields = to_arguments(self.experiment.evaluate_counterfactual)
            commands.append(["cjepa_dist.evaluate_counterfactual", *data, *fields])
            outputs.append(str(folder / f"counterfactual_{self.experiment.split}.json"))
        needs = [rollout.name]
        return Job(f"evaluate/{rollout.name}", "evaluate", commands, outputs, needs, [])

    def aloes(self, model: Model, rollout: Job, blind: bool) -> Iterator[Job]:
        """ALOEs on the rollout of one world model, and their evaluations."""
        experiment, data = self.experiment, self.runs / rollout.name
        controls = [("blind", {"blind": True})] if blind else []
        for arm, extra in [(model.arm, {}), *controls]:
            for suffix, fields in combinations(experiment.aloe, TrainAloe, experiment.sweep):
                for seed in experiment.aloe_seed or [model.seed]:
                    name = f"aloe/{arm}{suffix}/seed_{model.seed}"
                    if seed != model.seed or len(experiment.aloe_seed) > 1:
                        name += f"_aloe_{seed}"
                    aloe = self.aloe(name, {**fields, **extra}, seed, data, [rollout.name])
                    yield from (aloe, self.evaluate_aloe(aloe))

    def aloe(
        self, name: str, fields: dict[str, Any], seed: int, data: str | Path, needs: list[str]
    ) -> Job:
        command = [
            "cjepa_dist.train_aloe",
            config_path("aloe", self.experiment.aloe_config),
            *to_arguments(fields),
            f"seed={seed}",
            f"data={data}",
            f"run={self.runs / name}",
        ]
        return Job(name, "aloe", [command], [str(self.runs / name / "done.json")], needs, [])

    def evaluate_aloe(self, aloe: Job) -> Job:
        split = self.experiment.split
        fields = [f"run={aloe.run_dir}", f"split={split}", *to_arguments(self.experiment.evaluate)]
        commands = [["cjepa_dist.evaluate", *fields]]
        output = str(aloe.run_dir / "eval" / f"vqa_{split}.json")
        return Job(f"evaluate/{aloe.name}", "evaluate", commands, [output], [aloe.name], [])

    def shared_readers(self, models: list[Model]) -> list[Job]:
        """ALOEs that are trained on the simulator's own worlds and read every model's rollout.

        All world models are read by the same ALOEs, so the noise between trainings of ALOE does
        not enter their comparison. RUNS/shared_readers/<arm>/seed_<n>/reader_<k>/vqa_<split>.json
        """
        experiment = self.experiment
        if not experiment.shared_readers:
            return []
        if not experiment.aloe_config or not self.rolls_out_counterfactuals():
            raise UserError(
                "config field shared_readers: they read counterfactual rollouts;"
                " set aloe_config and rollout.mode=counterfactual"
            )
        truth = self.ground_truth_rollout()
        fields = without_sweeps(experiment.aloe, TrainAloe) | {"protocol": "counterfactual"}
        jobs = [truth]
        for seed in experiment.shared_readers:
            name, data = f"aloe/reader/seed_{seed}", self.runs / truth.name
            reader = self.aloe(name, fields, seed, data, [truth.name])
            jobs += [reader, self.evaluate_aloe(reader)]
            jobs += [self.read_rollout(reader, seed, model) for model in models]
        return jobs

    def ground_truth_rollout(self) -> Job:
        """What the simulator says would have happened, in the format of a rollout."""
        out = self.runs / "rollout" / "ground_truth"
        sizes = ("videos", "splits", "future_frames", "shard_mb")
        given = self.experiment.rollout
        fields = to_arguments({key: value for key, value in given.items() if key in sizes})
        command = ["cjepa_dist.rollout", "mode=truth", f"data={self.data}", f"out={out}", *fields]
        output, needs = str(out / "manifest.json"), list(self.needs_data)
        return Job("rollout/ground_truth", "rollout", [command], [output], needs, [])

    def read_rollout(self, reader: Job, seed: int, model: Model) -> Job:
        """Evaluates a reader on the rollout of a world model."""
        place, split = f"{model.arm}/seed_{model.seed}", self.experiment.split
        out = self.runs / "shared_readers" / place / f"reader_{seed}"
        command = [
            "cjepa_dist.evaluate",
            f"run={reader.run_dir}",
            f"data={self.runs / 'rollout' / place}",
            f"out={out}",
            f"split={split}",
            *to_arguments(self.experiment.evaluate),
        ]
        name, output = (
            f"evaluate/shared_readers/{place}/reader_{seed}",
            str(out / f"vqa_{split}.json"),
        )
        needs = [reader.name, f"rollout/{place}"]
        return Job(name, "evaluate", [command], [output], needs, [])

    def observed_aloe(self) -> list[Job]:
        """An ALOE that sees the observed slots and no prediction."""
        experiment = self.experiment
        if not (experiment.observed_aloe and experiment.aloe_config):
            return []
        fields = without_sweeps(experiment.aloe, TrainAloe) | {"protocol": "published"}
        seed = experiment.seed[0]
        name = f"aloe/observed/seed_{seed}"
        aloe = self.aloe(name, fields, seed, self.data, list(self.needs_data))
        return [aloe, self.evaluate_aloe(aloe)]


def is_arm(model: Model, arms: list[str]) -> bool:
    """Whether a model is of one of the arms; [] = all. Values of swept fields do not matter."""
    arm = model.arm.partition("+")[0]
    return arm in (arms or [arm])


def config_path(kind: str, name: str) -> str:
    """A config by name or path, absolute: a job may run in another folder."""
    return str(find_config(kind, name).absolute())


def describe_inputs(fields: Mapping[str, Any]) -> str:
    """xxh3 of names, sizes and times of the files that an import reads; "" if it reads none.

    Where they have changed, the import runs again, and compares the bytes.
    """
    given = [fields.get(name) for name in sorted(INPUT_FIELDS)]
    found = []
    for path in (Path(os.path.expanduser(str(value))) for value in given if value):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                found.append([str(file), stat.st_size, stat.st_mtime_ns])
    return fingerprint_of(found) if found else ""


def existing_data(folder: str) -> Path:
    if not (Path(folder) / "manifest.json").is_file():
        raise UserError(f"config field data={folder}: no data set is there (no manifest.json)")
    return Path(folder).resolve()
