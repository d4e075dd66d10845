"""Train C-JEPA on slot shards: `accelerate launch -m cjepa_dist.train_world_model CONFIG.yaml data=DIR run=RUN [key=value ...]`."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import torch

from cjepa_dist.causal.graph import ESTIMATORS
from cjepa_dist.config import command_line, schema
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.streaming import prefetcher
from cjepa_dist.data.streaming.windows import StreamingWindows
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError
from cjepa_dist.reporting.tensorboard_images import graph_image_callback, rollout_image_callback
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.loop import train
from cjepa_dist.training.run import Validation


def main(config: schema.TrainWorldModel) -> int:
    predictor, manifest = config.predictor, Manifest.load(config.data)
    manifest.check_slots(
        predictor.slots,
        predictor.slot_dim,
        config.data,
        "the config (predictor.slots x predictor.slot_dim)",
    )
    spec = WindowSpec(predictor.history_frames, predictor.pred_frames, config.frameskip)
    steps = config.ctt.consistency.steps
    if config.ctt.consistency.weight and (
        not steps or min(steps) < 1 or max(steps) > config.horizon
    ):
        raise UserError(
            f"ctt.consistency.steps={steps}: must be from 1 to horizon={config.horizon}, what a training window has room for"
        )
    graph, causal = (
        config.ctt.graph,
        config.ctt.invariance.weight > 0 or config.ctt.sufficiency.weight > 0,
    )
    interventional = (
        causal and config.ctt.kind == "per_sample" and graph.estimator == "interventional"
    )
    if interventional and graph.intervention == "empty" and manifest.empty_slot is None:
        raise UserError(
            f"{config.data} does not say what its empty slot is: take ctt.graph.intervention=swap or hide"
        )
    labels = causal and ESTIMATORS[graph.estimator].needs_truth
    source = open_train_split(config, labels, spec)
    validation = InMemoryWindows(config.data, config.val_split, spec)
    torch.manual_seed(config.seed)
    task = WorldModelTask(config)
    if manifest.empty_slot is not None:
        task.empty.copy_(torch.tensor(manifest.empty_slot))
    count = min(config.val_windows, len(validation))
    val_ids = np.linspace(0, len(validation) - 1, count).astype(np.int64)
    draw_graph, draw_rollout = (
        graph_image_callback(validation, val_ids),
        rollout_image_callback(config, validation),
    )

    def pictures(logger: RunLogger, step: int, measured: WorldModelTask) -> None:
        draw_graph(logger, step, measured)
        if draw_rollout is not None:
            draw_rollout(logger, step, measured)

    return train(task, source, Validation(validation, val_ids, pictures), config)


def open_train_split(
    config: schema.TrainWorldModel, labels: bool, spec: WindowSpec
) -> InMemoryWindows | StreamingWindows:
    """The train split as `reading` says; `labels`: the graph needs truth."""
    reading, spec = config.reading, dataclasses.replace(spec, horizon=config.horizon)
    if reading.kind != "streaming":
        prefetcher.check_in_memory_options(reading)
        device = local_gpu() if reading.kind == "device" else None
        return InMemoryWindows(
            config.data,
            config.train_split,
            spec,
            videos=config.videos,
            contact_share=config.contact_share,
            truth=labels,
            device=device,
        )
    for name, asked in (
        ("contact_share", config.contact_share > 0),
        (f"ctt.graph.estimator={config.ctt.graph.estimator}", labels),
    ):
        if asked:
            raise UserError(
                f"{name} needs the truth of the whole split in memory: take reading.kind=in_memory, or leave it out"
            )
    return StreamingWindows(
        config.data,
        config.train_split,
        spec,
        videos=config.videos,
        **prefetcher.prefetcher_options(reading, config.run),
    )


def local_gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise UserError(
            "reading.kind=device needs a GPU, there is none: take reading.kind=in_memory"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


if __name__ == "__main__":
    command_line.launch(schema.TrainWorldModel, main)
