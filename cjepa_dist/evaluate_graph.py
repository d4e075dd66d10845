"""Evaluate causal graphs: `python -m cjepa_dist.evaluate_graph run=RUN data=DIR split=val`.

Compares the edges of every estimator with contacts and influence in the simulator. Writes
RUN/eval/graphs_<split>.json and .png (into `out` if set), and prints the tables.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from cjepa_dist.checkpoint.run import load_run
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.plugins import PLUGINS_MEANING
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, GraphConfig
from cjepa_dist.data.format.fingerprint import dataset_fingerprint
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.evaluation import graphs
from cjepa_dist.reporting import figures, tables
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.world_model import WorldModelTask


@dataclass
class EvaluateGraph:
    """Edges of every graph estimator against contacts and influence in the simulator."""

    run: str = option(MISSING, "run directory of a world model", path=True)
    data: str = option(MISSING, "folder of slot shards with ground truth", path=True)
    out: str = option("", "folder for the results and the figure; empty = RUN/eval", path=True)
    plugins: list[str] = option([], PLUGINS_MEANING)
    split: str = option("val", "split to evaluate on")
    videos: int = option(0, "number of videos, from the first on; 0 = all", unit="videos", least=0)
    seed: int = option(0, "seed of the drawn windows and of the bootstrap", least=0, most=MAX_SEED)
    windows: int = option(2048, "maximum number of windows", unit="windows", least=2)
    batch_size: int = option(128, "windows per batch", unit="windows", least=2)
    contact_share: float = option(
        0.5,
        "wanted fraction of windows with a contact in the predicted interval",
        least=0.0,
        most=1.0,
    )
    bootstrap_draws: int = option(200, "bootstrap draws over videos", least=1)
    figure_windows: int = option(6, "windows in the figure", unit="windows", least=1)
    estimators: list[str] = option(
        list(graphs.ESTIMATORS),
        f"rows of the tables; also {' and '.join(graphs.SUMMARY_ESTIMATORS)}, which take seconds "
        "per video: set `videos`",
    )
    graph: GraphConfig = option(
        GraphConfig, "threshold, projections and tau; the list gives estimator and intervention"
    )


def main(config: EvaluateGraph) -> None:
    task, _, step, model = load_run(config.run)  # it also imports the plugins of the run
    check_names(config.estimators)
    if not isinstance(task, WorldModelTask):
        raise UserError(
            f"run {config.run} holds no world model; evaluate_graph takes runs of train_world_model"
        )
    size = task.config.predictor
    manifest = Manifest.load(config.data)
    manifest.check_slots(size.slots, size.slot_dim, config.data, f"run {config.run}")
    if not task.updates:
        print(
            f"warning: run {config.run} has no residual statistics: `gradient` and "
            "`interventional` weigh all dimensions equally and use tau = 1; import the checkpoint "
            "with data=DIR",
            flush=True,
        )
    dataset = InMemoryWindows(
        config.data,
        config.split,
        WindowSpec(
            history_frames=size.history_frames,
            pred_frames=size.pred_frames,
            frameskip=task.config.frameskip,
        ),
        contact_share=config.contact_share,
        videos=config.videos,
        truth=True,
    )
    device = default_device()
    task.to(device).eval()
    context = dataclasses.replace(
        task.graph_context(torch.zeros(1, dtype=torch.int64, device=device), step), seed=config.seed
    )
    result = graphs.evaluate_graphs(
        task.predictor,
        dataset,
        context,
        config.estimators,
        windows=config.windows,
        batch_size=config.batch_size,
        draws=config.bootstrap_draws,
        config=config.graph,
    )
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    path = folder / f"graphs_{config.split}.json"
    data = dataset_fingerprint(manifest, [config.split])
    result |= {
        "run": config.run,
        "data": without_secrets(config.data, ""),
        "split": config.split,
        "step": step,
    }
    result["fingerprint"] = {"model": model, "data": data}
    write_json(path, result)
    examples = graphs.example_graphs(
        task.predictor, dataset, context, samples=config.figure_windows, config=config.graph
    )
    figure = figures.plot_graphs(examples, path.with_suffix(".png"))
    for name in result["targets"]:
        print(tables.graph_table(result, name) + "\n")
    for name, seconds in result["summary_seconds"].items():
        print(f"{name}: {seconds} s per video")
    print(f"wrote {path}, {figure}")


def check_names(names: list[str]) -> None:
    """Raises UserError for a name that is not the name of an estimator."""
    known = (*graphs.ESTIMATORS, *graphs.SUMMARY_ESTIMATORS)
    for name in names:
        if name not in known and name not in GRAPH_ESTIMATORS:
            added = [name for name in GRAPH_ESTIMATORS if name not in known]
            raise UserError(f"estimators: {name!r} is none of {', '.join([*known, *added])}")


if __name__ == "__main__":
    launch(EvaluateGraph, main)
