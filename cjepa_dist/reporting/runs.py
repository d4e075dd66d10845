"""The runs of a report: their configs, and the result files of their evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.run import newest_fingerprint, read_config
from cjepa_dist.config.schema import TrainAloe, TrainWorldModel
from cjepa_dist.data.format.fingerprint import dataset_fingerprint, differences
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.training.run_data import read_run_data, run_data_fingerprint


@dataclass
class EvaluatedRun:
    """A run in the report: its name and config, and its results ({kind: content of the file})."""

    path: Path
    name: str
    config: TrainAloe | TrainWorldModel
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    data_size: str = ""


def collect_runs(
    paths: list[Path], split: str, graphs: bool, warnings: list[str]
) -> tuple[list[EvaluatedRun], list[EvaluatedRun]]:
    """The ALOE runs and the world-model runs of a report, each once, in the order of `paths`.

    The world model behind an ALOE run needs no mention. With `graphs`, every world model should
    have an evaluation of its graphs. Appends a warning for everything that is missing.
    """
    aloes: list[EvaluatedRun] = []
    world_models: dict[Path, EvaluatedRun] = {}
    for path, name in zip(paths, short_names(paths)):
        config = read_config(path)
        if isinstance(config, TrainWorldModel):
            world_models.setdefault(path.resolve(), EvaluatedRun(path, name, config))
            continue
        aloes.append(EvaluatedRun(path, name, config))
        model = find_world_model(config, name, warnings)
        if model is not None and model.resolve() not in world_models:
            run = EvaluatedRun(model, model.name, read_config(model))
            world_models[model.resolve()] = run
    names = short_names([run.path for run in world_models.values()])
    for run in aloes:
        read_results(run, ("vqa",), split, warnings)
    for run, name in zip(world_models.values(), names):
        run.name = name
        has_graphs = (run.path / "eval" / f"graphs_{split}.json").is_file()
        kinds = ("world_model", "graphs") if graphs or has_graphs else ("world_model",)
        read_results(run, kinds, split, warnings)
    for run in [*aloes, *world_models.values()]:
        warnings += replaced_data(run)
        run.data_size = describe_data(run.config.data)
        if not (run.path / "done.json").exists():
            warnings.append(
                f"run {run.path} has not reached its end (no done.json): its results are those of "
                "its last checkpoint"
            )
    return aloes, list(world_models.values())


def find_world_model(config: TrainAloe, name: str, warnings: list[str]) -> Path | None:
    """The run directory of the world model whose rollout an ALOE run was trained on.

    None, with a warning, if it cannot be found.
    """
    try:
        source = Manifest.load(config.data).source
    except UserError as error:
        warnings.append(f"{name}: cannot look for its world model: {error}")
        return None
    if source.get("kind") != "rollout":
        warnings.append(f"{name}: its data {config.data} are not a rollout of a world model")
        return None
    if "world_model" not in source:
        return None  # the simulator's own future and worlds
    model = Path(source["world_model"])
    if not (model / "config.yaml").is_file():
        warnings.append(f"{name}: its world model {model} does not exist any more")
        return None
    if model_differs(source.get("fingerprint", {}).get("world_model"), model):
        warnings.append(
            f"{name}: its data {config.data} were rolled out by another model than {model} holds"
            " now; roll out again with redo=true, then train it anew"
        )
    return model


def read_results(
    run: EvaluatedRun, kinds: tuple[str, ...], split: str, warnings: list[str]
) -> None:
    """Read result files into `run.results`; a warning says how to make a missing one."""
    for kind in kinds:
        path = run.path / "eval" / f"{kind}_{split}.json"
        try:
            run.results[kind] = json.loads(path.read_text(encoding="utf-8"))
            warnings += stale_results(run, path, run.results[kind])
        except FileNotFoundError:
            command = f"evaluate run={run.path}"
            if kind == "graphs":
                command = f"evaluate_graph run={run.path} data={run.config.data}"
            warnings.append(
                f"{path} is missing; make it with: python -m cjepa_dist.{command} split={split}"
            )
        except ValueError as error:
            warnings.append(f"{path} cannot be read ({error}); evaluate again")


def optional_results(run: EvaluatedRun, pattern: str, warnings: list[str]) -> list[dict[str, Any]]:
    """Results that not every run has, in the order of their file names."""
    found = []
    for path in sorted((run.path / "eval").glob(f"{pattern}.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            warnings.append(f"{path} cannot be read ({error}); evaluate again")
            continue
        warnings += stale_results(run, path, found[-1])
    return found


def stale_results(run: EvaluatedRun, path: Path, result: dict[str, Any]) -> list[str]:
    """A warning if a result is of another model than the run holds now, or of other data."""
    recorded, stale = result.get("fingerprint"), []
    if not recorded:
        return []  # it does not say
    if model_differs(recorded.get("model"), run.path):
        stale.append(f"another model than {run.path} holds now")
    try:
        data = dataset_fingerprint(Manifest.load(result["data"]), [result["split"]])
    except UserError:
        data = recorded["data"]  # they are not there any more
    if differences(recorded["data"], data):
        stale.append(f"other data than {result['data']} holds now")
    return [f"{path} is of {' and of '.join(stale)}; evaluate again"] if stale else []


def replaced_data(run: EvaluatedRun) -> list[str]:
    """A warning if a run was trained on other data than there are now at its path."""
    before = read_run_data(run.path)
    try:
        now = run_data_fingerprint(run.config)
    except UserError:
        return []  # they are not there any more
    if before is None or not (found := differences(before, now)):
        return []
    return [
        f"run {run.path} was trained on other data than {run.config.data} holds now: they differ"
        f" in {', '.join(found)}"
    ]


def model_differs(recorded: dict[str, Any] | None, run_dir: Path) -> bool:
    """Whether a run holds another model now than the one that a result records."""
    now = newest_fingerprint(run_dir)
    if not (now and recorded):
        return False
    return bool(differences({name: recorded.get(name) for name in now}, now))


def describe_data(folder: str) -> str:
    try:
        manifest = Manifest.load(folder)
    except UserError:
        return "does not exist"
    splits = ", ".join(f"{name} {manifest.count(name)}" for name in manifest.splits)
    return f"{splits}; {manifest.slots} slots x {manifest.slot_dim}"


def short_names(paths: list[Path]) -> list[str]:
    """The last parts of the paths, as many as are needed to tell them apart."""
    for parts in range(1, 6):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
