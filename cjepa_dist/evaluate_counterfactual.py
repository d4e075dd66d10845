"""Evaluate counterfactuals: `python -m cjepa_dist.evaluate_counterfactual run=RUN data=DIR`.

Compares rollouts without an object with exact re-simulation. Writes
RUN/eval/counterfactual_<split>.json and .png, adds the figure to the TensorBoard of RUN (or writes
all into `out`), and prints the table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.checkpoint.run import load_run
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, INTERVENTIONS, MISSING, GraphConfig
from cjepa_dist.data.format.fingerprint import dataset_fingerprint
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.evaluation import counterfactual
from cjepa_dist.evaluation.event_decoder import fit_event_decoder
from cjepa_dist.reporting import figures, tables
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import log_image


@dataclass
class EvaluateCounterfactual:
    """Worlds without an object, by every divergence rule, against the simulator."""

    run: str = option(MISSING, "run directory of a world model", path=True)
    data: str = option(MISSING, "folder of slot shards with counterfactual truth", path=True)
    split: str = option("val", "split to evaluate on")
    out: str = option(
        "",
        "folder for the results and the figure; empty = RUN/eval, and the figure also to "
        "TensorBoard",
        path=True,
    )
    videos: int = option(64, "number of videos, from the first on; 0 = all", unit="videos", least=0)
    rules: list[str] = option(
        list(counterfactual.DIVERGENCE_RULES),
        "rows of the table; also other graph estimators, and `paired:4`: tau times 4",
    )
    graph: GraphConfig = option(
        GraphConfig, "projections and tau of graphs; the list gives the estimator"
    )
    batch_size: int = option(16, "videos per batch", unit="videos", least=1)
    probe_videos: int = option(
        200, "videos of the train split to fit the event decoder on", unit="videos", least=1
    )
    figure_worlds: int = option(4, "worlds in the figure", unit="worlds", least=1)
    bootstrap_draws: int = option(1000, "bootstrap draws over videos", least=2)
    seed: int = option(
        0, "seed of the probe, of random graphs and of the bootstrap", least=0, most=MAX_SEED
    )


def main(config: EvaluateCounterfactual) -> int:
    began = time.time()
    task, trained, step, model = load_run(config.run)  # it also imports the plugins of the run
    check_names(config.rules)
    if not isinstance(task, WorldModelTask):
        raise UserError(
            f"run {config.run} holds no world model; evaluate_counterfactual takes runs of "
            "train_world_model"
        )
    size = task.config.predictor
    manifest = Manifest.load(config.data)
    manifest.check_slots(size.slots, size.slot_dim, config.data, f"run {config.run}")
    decoder = fit_event_decoder(
        config.data, trained.train_split, videos=config.probe_videos, seed=config.seed
    )
    evaluator = counterfactual.CounterfactualEvaluator(
        task.to(default_device()), decoder, config.graph, config.seed
    )
    result = {
        "kind": "counterfactual",
        "run": config.run,
        "step": step,
        "data": without_secrets(config.data, ""),
        "split": config.split,
        "seed": config.seed,
        "fingerprint": {
            "model": model,
            "data": dataset_fingerprint(manifest, [config.split]),
        },
    }
    result |= counterfactual.evaluate_counterfactual(
        evaluator,
        config.data,
        config.split,
        config.rules,
        videos=config.videos,
        batch_size=config.batch_size,
        draws=config.bootstrap_draws,
        seed=config.seed,
    )
    result |= {
        "probe_rmse": decoder.probe.rmse,
        "collisions_f1_train": decoder.f1,
        "seconds": round(time.time() - began, 1),
    }
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    path = folder / f"counterfactual_{config.split}.json"
    write_json(path, result)
    examples = counterfactual.most_affected_worlds(
        evaluator,
        config.data,
        config.split,
        videos=config.videos,
        batch_size=config.batch_size,
        count=config.figure_worlds,
    )
    figure = figures.plot_counterfactual_worlds(examples, path.with_suffix(".png"))
    if not config.out:
        log_image(Path(config.run), step, f"counterfactual/{config.split}", figure)
    print("\n".join(tables.counterfactual_tables({config.run: result})))
    print(f"{result['seconds']} s; wrote {path}, {path.with_suffix('.png')}")
    return 0


def check_names(rules: list[str]) -> None:
    """Raises UserError for a name that is not the name of a rule."""
    known = {
        *counterfactual.DIVERGENCE_RULES,
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
