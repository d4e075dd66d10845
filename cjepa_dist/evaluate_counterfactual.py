"""Counterfactual rollouts against exact re-simulation: `python -m cjepa_dist.evaluate_counterfactual run=RUN data=DIR split=val`.

Writes RUN/eval/counterfactual_<split>.json and .png, and the picture to RUN's TensorBoard (or all into `out`), and prints the table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa_dist.checkpoint.loading import load_task
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, INTERVENTIONS, MISSING, GraphConfig
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import counterfactual
from cjepa_dist.evaluation.event_decoder import fit_event_decoder
from cjepa_dist.reporting import figures, tables
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import log_image


@dataclass
class EvaluateCounterfactual:
    """What would have happened without an object, by each rule of divergence, against the simulator."""

    run: str = option(MISSING, "run folder of a world model")
    data: str = option(MISSING, "folder of slot shards with counterfactual truth")
    split: str = option("val", "split to measure on")
    out: str = option(
        "",
        "folder for the table and the picture; empty = RUN/eval, and the picture also to TensorBoard",
    )
    videos: int = option(64, "first so many videos; 0 = all", unit="videos", least=0)
    rules: list[str] = option(
        list(counterfactual.RULES),
        "rows of the table; also other graph estimators, and `paired:4`: tau four times as large",
    )
    graph: GraphConfig = option(
        GraphConfig, "projections and tau of graphs; the estimator comes from the list"
    )
    batch: int = option(16, "videos at once", unit="videos", least=1)
    fit_videos: int = option(
        200,
        "videos of the train split for the probe and the rule of contact",
        unit="videos",
        least=1,
    )
    scenes: int = option(4, "worlds in the picture", unit="worlds", least=1)
    draws: int = option(1000, "draws of the bootstrap over videos", least=2)
    seed: int = option(0, "seed of the probe, of random graphs and of the bootstrap")


def main(config: EvaluateCounterfactual) -> int:
    began = time.time()
    check_names(config.rules)
    task, trained, step = load_task(config.run)
    if not isinstance(task, WorldModelTask):
        raise UserError(
            f"run {config.run} holds no world model; evaluate_counterfactual measures runs of train_world_model"
        )
    size = task.config.predictor
    Manifest.load(config.data).check_slots(
        size.slots, size.slot_dim, config.data, f"run {config.run}"
    )
    reader = fit_event_decoder(
        config.data, trained.train_split, videos=config.fit_videos, seed=config.seed
    )
    study = counterfactual.Study(
        task.to("cuda" if torch.cuda.is_available() else "cpu"), reader, config.graph, config.seed
    )
    result = {
        "kind": "counterfactual",
        "run": config.run,
        "step": step,
        "data": config.data,
        "split": config.split,
        "seed": config.seed,
    }
    result |= counterfactual.evaluate_counterfactual(
        study,
        config.data,
        config.split,
        config.rules,
        videos=config.videos,
        batch=config.batch,
        draws=config.draws,
        seed=config.seed,
    )
    result |= {
        "probe_rmse": reader.probe.rmse,
        "collisions_f1_train": reader.f1,
        "seconds": round(time.time() - began, 1),
    }
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    path = folder / f"counterfactual_{config.split}.json"
    write_json(path, result)
    shown = counterfactual.examples(
        study,
        config.data,
        config.split,
        videos=config.videos,
        batch=config.batch,
        count=config.scenes,
    )
    picture = figures.counterfactual(shown, path.with_suffix(".png"))
    if not config.out:
        log_image(Path(config.run), step, f"counterfactual/{config.split}", picture)
    print("\n".join(tables.counterfactual({config.run: result})))
    print(f"{result['seconds']} s; wrote {path}, {path.with_suffix('.png')}")
    return 0


def check_names(rules: list[str]) -> None:
    """Raises UserError for a name that is no rule."""
    known = {
        *counterfactual.RULES,
        *GRAPH_ESTIMATORS,
        *(f"interventional:{how}" for how in INTERVENTIONS),
    }
    for name in rules:
        factor = name.removeprefix("paired:")
        if name not in known and not (
            factor != name and factor.replace(".", "", 1).isdigit() and float(factor) > 0
        ):
            raise UserError(f"rules: {name!r} is none of {', '.join(sorted(known))}, paired:FACTOR")


if __name__ == "__main__":
    launch(EvaluateCounterfactual, main)
