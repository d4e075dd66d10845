"""Train a C-JEPA world model on slot shards.

accelerate launch -m cjepa_dist.train_world_model CONFIG.yaml data=DIR run=RUN [key=value ...]
"""

from __future__ import annotations

import dataclasses

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
from cjepa_dist.reporting.tensorboard_images import (
    graph_image_callback,
    rollout_image_callback,
    scene_callback,
)
from cjepa_dist.runtime.environment import read_int
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import RunLogger
from cjepa_dist.training.loop import train
from cjepa_dist.training.run import Validation


def main(config: schema.TrainWorldModel) -> int:
    predictor, manifest = config.predictor, Manifest.load(config.data)
    needs_labels = check_losses(config, manifest)
    spec = WindowSpec(predictor.history_frames, predictor.pred_frames, config.frameskip)
    train_set = open_train_split(config, needs_labels, spec)
    validation = InMemoryWindows(config.data, config.val_split, spec)
    torch.manual_seed(config.seed)
    task = WorldModelTask(config)
    if manifest.empty_slot is not None:
        task.empty.copy_(torch.tensor(manifest.empty_slot))
    count = min(config.val_windows, len(validation))
    val_ids = np.linspace(0, len(validation) - 1, count).astype(np.int64)
    callbacks = [
        graph_image_callback(validation, val_ids),
        rollout_image_callback(config, validation),
        scene_callback(config, validation),
    ]

    def draw_images(logger: RunLogger, step: int, task: WorldModelTask) -> None:
        for callback in callbacks:
            if callback is not None:
                callback(logger, step, task)

    return train(task, train_set, Validation(validation, val_ids, draw_images), config)


def check_losses(config: schema.TrainWorldModel, manifest: Manifest) -> bool:
    """Whether the losses need labels. Raises UserError where config and data do not fit."""
    predictor, ctt = config.predictor, config.ctt
    manifest.check_slots(
        predictor.slots,
        predictor.slot_dim,
        config.data,
        "the config (predictor.slots x predictor.slot_dim)",
    )
    steps = ctt.consistency.steps
    if ctt.consistency.weight and (not steps or min(steps) < 1 or max(steps) > config.horizon):
        raise UserError(
            f"ctt.consistency.steps={steps}: must be from 1 to horizon={config.horizon}, the "
            "predictions in a training window"
        )
    uses_graph = ctt.invariance.weight > 0 or ctt.sufficiency.weight > 0
    fields = [
        f"ctt.{name}.intervention"
        for name, reads, how in (
            ("graph", ctt.graph.estimator == "interventional", ctt.graph.intervention),
            ("invariance", ctt.invariance.weight > 0, ctt.invariance.intervention),
            ("sufficiency", ctt.sufficiency.weight > 0, ctt.sufficiency.intervention),
        )
        if reads and how == "empty"
    ]
    if uses_graph and ctt.kind == "per_sample" and fields and manifest.empty_slot is None:
        raise UserError(
            f"{config.data} does not say what its empty slot is: set {' and '.join(fields)} to hide"
        )
    return uses_graph and ESTIMATORS[ctt.graph.estimator].needs_truth


def open_train_split(
    config: schema.TrainWorldModel, needs_labels: bool, spec: WindowSpec
) -> InMemoryWindows | StreamingWindows:
    """The windows of the train split, read as `reading` says."""
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
            truth=needs_labels,
            device=device,
        )
    for name, is_set in (
        ("contact_share", config.contact_share > 0),
        (f"ctt.graph.estimator={config.ctt.graph.estimator}", needs_labels),
    ):
        if is_set:
            raise UserError(
                f"{name} needs the ground truth of the whole split in memory: set "
                "reading.kind=in_memory, or leave it out"
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
    return torch.device("cuda", read_int("LOCAL_RANK", 0))


if __name__ == "__main__":
    command_line.launch(schema.TrainWorldModel, main)
