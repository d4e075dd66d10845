"""Measure a run's graphs against the simulator's truth: `python -m cjepa_dist.evaluate_graph run=RUN data=DIR split=val`.

Writes RUN/eval/graphs_<split>.json and .png, and prints the table.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from cjepa_dist.config import GraphConfig, launch, option
from cjepa_dist.data.windows import ResidentWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import graphs
from cjepa_dist.tasks import WorldModelTask
from cjepa_dist.training.checkpoint import load_task


@dataclass
class EvaluateGraph:
    """Edges by each estimator of the graph against contacts and influence in the simulator."""

    run: str = option(MISSING, "run folder of a world model")
    data: str = option(MISSING, "folder of slot shards with truth")
    split: str = option("val", "split to measure on")
    seed: int = option(0, "choice of windows, bootstrap")
    windows: int = option(2048, "windows measured at most", unit="windows", least=2)
    batch: int = option(128, "windows at a time", unit="windows", least=2)
    contact_share: float = option(0.5, "share of windows with a contact in the predicted interval that is aimed at", least=0.0)
    draws: int = option(200, "bootstrap draws over videos", least=1)
    samples: int = option(6, "windows in the picture", unit="windows", least=1)
    estimators: list[str] = option(list(graphs.ESTIMATORS), "estimators; interventional takes :hide, :empty or :swap")
    graph: GraphConfig = option(GraphConfig, "threshold and tau; estimator and intervention come from the list")


def main(config: EvaluateGraph) -> None:
    check_names(config.estimators)
    task, _, step = load_task(config.run)
    if not isinstance(task, WorldModelTask):
        raise UserError(f"run {config.run} holds no world model; evaluate_graph measures runs of train_world_model")
    size = task.config.predictor
    source = ResidentWindows(
        config.data,
        config.split,
        history_frames=size.history_frames,
        pred_frames=size.pred_frames,
        frameskip=task.config.frameskip,
        contact_share=config.contact_share,
        truth=True,
    )
    if source.shape[1:] != (size.slots, size.slot_dim):
        raise UserError(
            f"run {config.run} takes slots of {size.slots} x {size.slot_dim}, {config.data} has {source.shape[1]} x {source.shape[2]}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.to(device).eval()
    context = dataclasses.replace(task.graph_context(torch.zeros(1, dtype=torch.int64, device=device), step), seed=config.seed)
    result = graphs.evaluate_graphs(
        task.predictor,
        source,
        context,
        config.estimators,
        windows=config.windows,
        batch=config.batch,
        draws=config.draws,
        config=config.graph,
    )
    folder = Path(config.run) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"graphs_{config.split}.json"
    result |= {"run": config.run, "data": config.data, "split": config.split, "step": step}
    target.write_text(json.dumps(result, indent=1))
    picture = graphs.heatmaps(task.predictor, source, context, target.with_suffix(".png"), samples=config.samples, config=config.graph)
    for name in result["targets"]:
        print(graphs.markdown(result, name) + "\n")
    print(f"written: {target}, {picture}")


def check_names(names: list[str]) -> None:
    """Raises UserError for a name that is no estimator."""
    for name in names:
        estimator, _, intervention = name.partition(":")
        if estimator not in graphs.NAMES or (
            intervention and (estimator != "interventional" or intervention not in ("hide", "empty", "swap"))
        ):
            raise UserError(f"estimators: {name!r} is none of {', '.join(graphs.NAMES)} (interventional takes :hide, :empty, :swap)")


if __name__ == "__main__":
    launch(EvaluateGraph, main)
