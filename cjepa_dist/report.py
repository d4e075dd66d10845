"""Put runs side by side: `python -m cjepa_dist.report runs=RUN_A,RUN_B [out=DIR]`.

    ALOE run ──config.data──> manifest of its rollout ──source──> world model run
    eval/*.json of both ──> DIR/report.md, DIR/vqa.png, DIR/world_model.png

World-model runs may be named too. `read=DIR` adds what ALOEs trained on the simulator's own worlds read in each world model's rollout
(DIR/<arm>/seed_<n>/<reader>/vqa_<split>.json, as `slurm.submit` with `readers` makes them). What is missing is said in the report, in a
line of its own; `strict=true` makes it an error.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.loading import read_config
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING, TrainAloe, TrainWorldModel
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.reporting import figures, seeds, tables


@dataclass
class Report:
    """Tables and pictures of runs, the published numbers beside them."""

    runs: str = option(
        MISSING,
        "run folders of ALOE (or world models), with commas between; differences are against the first",
    )
    out: str = option("report", "folder for report.md and the pictures")
    read: str = option(
        "", "folder of what the same ALOEs read in the rollout of every world model; empty = none"
    )
    split: str = option("val", "split whose measurements to show")
    graphs: bool = option(True, "graphs were to be measured: say where they are missing")
    draws: int = option(2000, "draws of the bootstrap over videos for differences", least=2)
    seed: int = option(0, "seed of the bootstrap")
    strict: bool = option(
        False, "exit with 2 when a measurement is missing, after writing the report"
    )


@dataclass
class Arm:
    """A run as the report sees it: its name, config, and what was measured ({file stem: content})."""

    path: Path
    name: str
    config: TrainAloe | TrainWorldModel
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: str = ""


def main(config: Report) -> int:
    paths = [Path(part.strip()) for part in config.runs.split(",") if part.strip()]
    if not paths:
        raise UserError("runs= names no run folder")
    warnings: list[str] = []
    vqa, world = collect(paths, config, warnings)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    measured = {arm.name: arm.measured["vqa"] for arm in vqa if "vqa" in arm.measured}
    models = {
        arm.name: arm.measured["world_model"] for arm in world if "world_model" in arm.measured
    }
    graphs = {arm.name: arm.measured["graphs"] for arm in world if "graphs" in arm.measured}
    removals = {
        arm.name: found for arm in world for found in extra(arm, f"counterfactual_{config.split}")
    }
    symbolic = {
        f"{arm.name}: {found['rollout']}": found
        for arm in world
        for found in extra(arm, f"symbolic_*_{config.split}")
    }
    readers = [
        Arm(arm.path, arm.name, arm.config, {"vqa": found[0]})
        for arm in world
        if (found := extra(arm, f"symbolic_*_{config.split}"))
    ]
    sections = [
        f"# Report, split {config.split}\n",
        *(f"> **Warning:** {line}\n" for line in warnings),
        *over_seeds(world, "world_model", config),
        *over_seeds(vqa, "vqa", config),
        *over_seeds(readers, "vqa", config, "Question programs on rollouts"),
        *read_by_the_same(config),
        *tables.world_models(models),
        *tables.edges(graphs),
        *tables.counterfactual(removals),
        *tables.vqa(measured),
        *tables.differences(measured, draws=config.draws, seed=config.seed),
        *tables.vqa(symbolic, "Question programs on events read off rollouts"),
        *tables.differences(symbolic, draws=config.draws, seed=config.seed),
        *tables.published(measured),
    ]
    if measured:
        figures.vqa(measured, out / "vqa.png")
        sections.append("![VQA accuracy by question type](vqa.png)\n")
    if models:
        figures.world_models(models, out / "world_model.png")
        sections.append("![Errors of the world models](world_model.png)\n")
    text = "\n".join([*sections, *provenance(vqa + world, config)])
    temporary = out / "report.md.partial"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out / "report.md")
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {out / 'report.md'}")
    if warnings and config.strict:
        raise UserError(
            f"the report is incomplete: {len(warnings)} measurement(s) missing, see {out / 'report.md'}"
        )
    return 0


def collect(paths: list[Path], report: Report, warnings: list[str]) -> tuple[list[Arm], list[Arm]]:
    """ALOE arms and world-model arms (named, or found behind an ALOE run; each once), in order. Adds a warning for what is missing."""
    vqa: list[Arm] = []
    world: dict[Path, Arm] = {}
    names = short_names(paths)
    for path, name in zip(paths, names):
        config = read_config(path)
        if isinstance(config, TrainWorldModel):
            world.setdefault(path.resolve(), Arm(path, name, config))
            continue
        vqa.append(Arm(path, name, config))
        model = world_model_of(config, name, warnings)
        if model is not None and model.resolve() not in world:
            world[model.resolve()] = Arm(model, model.name, read_config(model))
    for arm in vqa:
        read_measured(arm, ("vqa",), report.split, warnings)
    for arm, name in zip(world.values(), short_names([arm.path for arm in world.values()])):
        arm.name = name
        found = list((arm.path / "eval").glob(f"graphs_{report.split}.json"))
        read_measured(
            arm,
            ("world_model", "graphs") if report.graphs or found else ("world_model",),
            report.split,
            warnings,
        )
    for arm in [*vqa, *world.values()]:
        arm.size = data_size(arm.config.data)
        if not (arm.path / "done.json").exists():
            warnings.append(
                f"run {arm.path} has not reached its end (no done.json): its numbers are those of its last checkpoint"
            )
    return vqa, list(world.values())


def world_model_of(config: TrainAloe, name: str, warnings: list[str]) -> Path | None:
    """The run folder of the world model whose rollout an ALOE run was trained on; None, with a warning, if it cannot be found."""
    try:
        source = Manifest.load(config.data).source
    except UserError as error:
        warnings.append(f"{name}: cannot look for its world model: {error}")
        return None
    if source.get("kind") != "rollout":
        warnings.append(
            f"{name}: its data {config.data} are no rollout, so no world model stands behind them"
        )
        return None
    if "world_model" not in source:
        return None  # the simulator's own future and worlds
    model = Path(source["world_model"])
    if not (model / "config.yaml").is_file():
        warnings.append(f"{name}: its world model {model} is not there any more")
        return None
    return model


def read_measured(arm: Arm, kinds: tuple[str, ...], split: str, warnings: list[str]) -> None:
    tool = {"graphs": "evaluate_graph"}
    for kind in kinds:
        path = arm.path / "eval" / f"{kind}_{split}.json"
        try:
            arm.measured[kind] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            data = f" data={arm.config.data}" if kind == "graphs" else ""
            command = f"python -m cjepa_dist.{tool.get(kind, 'evaluate')} run={arm.path}{data} split={split}"
            warnings.append(f"{path} is missing; make it with: {command}")
        except ValueError as error:
            warnings.append(f"{path} cannot be read ({error}); measure again")


def over_seeds(arms: list[Arm], kind: str, config: Report, title: str = "") -> list[str]:
    """Mean, spread and paired differences of runs in <arm>/seed_<n>; [] unless an arm has several seeds."""
    found: dict[Path, dict[str, dict[str, float]]] = {}
    read = seeds.accuracies if kind == "vqa" else seeds.errors
    for run in arms:
        if kind in run.measured and (place := seeds.arm_and_seed(run.path.resolve())):
            found.setdefault(place[0], {})[place[1]] = read(run.measured[kind])
    if max(map(len, found.values()), default=0) < 2:
        return []
    named = dict(zip(short_names(list(found)), found.values()))
    named_so, what = ("VQA", "accuracy, percent") if kind == "vqa" else ("World models", "slot MSE")
    text = f"{what}; mean ± standard deviation over seeds; differences from the first arm, paired by seed, 95 % bootstrap over seeds"
    lines = seeds.table(
        named,
        percent=kind != "vqa",
        draws=config.draws,
        seed=config.seed,
        digits=1 if kind == "vqa" else 4,
    )
    return [
        f"## {title or named_so} over seeds\n",
        f"{text[0].upper()}{text[1:]} ({seeds.MARK}).\n",
        *lines,
        "",
    ]


def read_by_the_same(config: Report) -> list[str]:
    """World models by what the same ALOEs read in their rollouts: no training of an ALOE stands between two of them."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for path in (
        sorted(Path(config.read).glob(f"*/seed_*/*/vqa_{config.split}.json")) if config.read else ()
    ):
        arm, seed, reader = path.parts[-4:-1]
        found.setdefault(arm, {}).setdefault(seed, {})[reader] = seeds.accuracies(
            json.loads(path.read_text(encoding="utf-8"))
        )
    if not found:
        return []
    by_all = sorted(
        set.intersection(*(set(readers) for runs in found.values() for readers in runs.values()))
    )
    if not by_all:
        return ["## Read by the same ALOEs\n", "No reader has read them all.\n"]
    means = {
        arm: {
            seed: seeds.mean([readers[name] for name in by_all]) for seed, readers in runs.items()
        }
        for arm, runs in found.items()
    }
    text = f"Accuracy, percent, a mean over {', '.join(by_all)}; ± and intervals are over seeds of the world models, paired by seed"
    text += f" ({seeds.MARK}).\n"
    return [
        "## Read by the same ALOEs\n",
        text,
        *seeds.table(means, percent=False, draws=config.draws, seed=config.seed, digits=1),
        "",
    ]


def extra(arm: Arm, pattern: str) -> list[dict[str, Any]]:
    """Measurements of a run that not every run has, in the order of their files' names."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((arm.path / "eval").glob(f"{pattern}.json"))
    ]


def data_size(folder: str) -> str:
    try:
        manifest = Manifest.load(folder)
    except UserError:
        return "not there"
    return (
        ", ".join(f"{name} {manifest.count(name)}" for name in manifest.splits)
        + f"; {manifest.slots} slots x {manifest.slot_dim}"
    )


def short_names(paths: list[Path]) -> list[str]:
    """Last parts of the paths, as many as it takes to tell them apart."""
    for parts in range(1, 6):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def provenance(arms: list[Arm], config: Report) -> list[str]:
    """What it takes to make these numbers again."""
    rows = [
        "## How these numbers were made\n",
        f"{time.strftime('%Y-%m-%d %H:%M')}, `python -m cjepa_dist.report runs={shlex.quote(config.runs)} split={config.split}`\n",
        "| run | seed | length | videos | checkpoint measured |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        loop = arm.config.loop
        length = f"{loop.steps}" if loop.steps else f"{loop.epochs:g} epochs"
        steps = sorted(
            {str(content["step"]) for content in arm.measured.values() if "step" in content}
        ) or ["-"]
        rows.append(
            f"| {arm.path} | {arm.config.seed} | {length}, batch {loop.global_batch_size} | {arm.size} | step {', '.join(steps)} |"
        )
    commands = []
    for arm in arms:
        module = "train_aloe" if isinstance(arm.config, TrainAloe) else "train_world_model"
        commands.append(
            f"accelerate launch -m cjepa_dist.{module} {shlex.quote(str(arm.path / 'config.yaml'))}"
        )
        commands += [
            f"python -m cjepa_dist.{command}" for command in measure_commands(arm, config.split)
        ]
    return [*rows, "\n```", *commands, "```\n"]


def measure_commands(arm: Arm, split: str) -> list[str]:
    run = shlex.quote(str(arm.path))
    if isinstance(arm.config, TrainAloe):
        return [f"evaluate run={run} split={split}"]
    graph = f"evaluate_graph run={run} data={shlex.quote(arm.config.data)} split={split}"
    own = arm.measured.get("world_model", {}).get("own_slot")
    return [
        f"evaluate run={run} split={split}" + (f" own_slot={shlex.quote(own)}" if own else ""),
        graph,
    ]


if __name__ == "__main__":
    command_line.launch(Report, main)
