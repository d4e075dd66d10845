"""Measure a run's graphs against the simulator's truth: `python -m cjepa_dist.evaluate_graph run=RUN data=DIR split=val`.

Writes RUN/eval/graphs_<split>.json and .png (into `out` where that is set), and prints the table.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from cjepa_dist.checkpoint.loading import load_task
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import graphs
from cjepa_dist.runtime.device import default_device
from cjepa_dist.tasks.world_model import WorldModelTask


@dataclass
class EvaluateGraph:
    """Edges by each estimator of the graph against contacts and influence in the simulator."""

    run: str = option(MISSING, "run folder of a world model")
    data: str = option(MISSING, "folder of slot shards with truth")
    out: str = option("", "folder for the table and the picture; empty = RUN/eval")
    split: str = option("val", "split to measure on")
    videos: int = option(
        0, "use the first so many videos of the split; 0 = all", unit="videos", least=0
    )
    seed: int = option(0, "choice of windows, bootstrap")
    windows: int = option(2048, "windows measured at most", unit="windows", least=2)
    batch: int = option(128, "windows at a time", unit="windows", least=2)
    contact_share: float = option(
        0.5, "share of windows with a contact in the predicted interval that is aimed at", least=0.0
    )
    draws: int = option(200, "bootstrap draws over videos", least=1)
    samples: int = option(6, "windows in the picture", unit="windows", least=1)
    estimators: list[str] = option(
        list(graphs.ESTIMATORS),
        "rows of the table; also " + " and ".join(graphs.SUMMARY) + ": seconds a video, see videos",
    )
    graph: GraphConfig = option(
        GraphConfig, "threshold, projections and tau; estimator and intervention come from the list"
    )


def main(config: EvaluateGraph) -> None:
    check_names(config.estimators)
    task, _, step = load_task(config.run)
    if not isinstance(task, WorldModelTask):
        raise UserError(
            f"run {config.run} holds no world model; evaluate_graph measures runs of train_world_model"
        )
    size = task.config.predictor
    Manifest.load(config.data).check_slots(
        size.slots, size.slot_dim, config.data, f"run {config.run}"
    )
    if not task.updates:
        print(
            f"warning: run {config.run} never measured its residuals: `gradient` and `interventional` weigh all dimensions alike and take "
            "tau = 1; import the checkpoint with data=DIR",
            flush=True,
        )
    source = InMemoryWindows(
        config.data,
        config.split,
        history_frames=size.history_frames,
        pred_frames=size.pred_frames,
        frameskip=task.config.frameskip,
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
        source,
        context,
        config.estimators,
        windows=config.windows,
        batch=config.batch,
        draws=config.draws,
        config=config.graph,
    )
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"graphs_{config.split}.json"
    result |= {"run": config.run, "data": config.data, "split": config.split, "step": step}
    target.write_text(json.dumps(result, indent=1))
    picture = graphs.heatmaps(
        task.predictor,
        source,
        context,
        target.with_suffix(".png"),
        samples=config.samples,
        config=config.graph,
    )
    for name in result["targets"]:
        print(graphs.markdown(result, name) + "\n")
    for name, seconds in result["summary_seconds"].items():
        print(f"{name}: {seconds} s a video")
    print(f"written: {target}, {picture}")


def check_names(names: list[str]) -> None:
    """Raises UserError for a name that is no row of the table."""
    known = (*graphs.ESTIMATORS, *graphs.SUMMARY)
    for name in names:
        if name not in (*known, "interventional"):
            raise UserError(f"estimators: {name!r} is none of {', '.join(known)}")


if __name__ == "__main__":
    launch(EvaluateGraph, main)
