"""Train C-JEPA on slot shards: `accelerate launch -m cjepa_dist.train_world_model CONFIG.yaml data=DIR run=RUN [key=value ...]`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cjepa_dist import config as schema
from cjepa_dist.data.shards import Manifest
from cjepa_dist.data.windows import ResidentWindows
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.pictures import graph_picture, rollout_picture
from cjepa_dist.tasks import WorldModelTask
from cjepa_dist.training.loop import train
from cjepa_dist.training.telemetry import Telemetry

NEEDS_TRUTH = ("oracle", "shuffled", "distance", "extrapolated_distance")


def main(config: schema.TrainWorldModel) -> int:
    predictor, manifest = config.predictor, Manifest.load(config.data)
    manifest.check_slots(predictor.slots, predictor.slot_dim, config.data, "the config (predictor.slots x predictor.slot_dim)")
    read = partial(
        ResidentWindows,
        config.data,
        history_frames=predictor.history_frames,
        pred_frames=predictor.pred_frames,
        frameskip=config.frameskip,
    )
    steps = config.ctt.consistency.steps
    if config.ctt.consistency.weight and (not steps or min(steps) < 1 or max(steps) > config.horizon):
        raise UserError(f"ctt.consistency.steps={steps}: must be from 1 to horizon={config.horizon}, what a training window has room for")
    graph, causal = config.ctt.graph, config.ctt.invariance.weight > 0 or config.ctt.sufficiency.weight > 0
    interventional = causal and config.ctt.kind == "per_sample" and graph.estimator == "interventional"
    if interventional and graph.intervention == "empty" and manifest.empty_slot is None:
        raise UserError(f"{config.data} does not say what its empty slot is: take ctt.graph.intervention=swap or hide")
    labels = causal and graph.estimator in NEEDS_TRUTH
    source = read(config.train_split, horizon=config.horizon, contact_share=config.contact_share, videos=config.videos, truth=labels)
    validation = read(config.val_split)
    torch.manual_seed(config.seed)
    task = WorldModelTask(config)
    if manifest.empty_slot is not None:
        task.empty.copy_(torch.tensor(manifest.empty_slot))
    count = min(config.val_windows, len(validation))
    val_ids = np.linspace(0, len(validation) - 1, count).astype(np.int64)
    draw_graph, draw_rollout = graph_picture(validation, val_ids), rollout_picture(config, validation)

    def pictures(telemetry: Telemetry, step: int, measured: WorldModelTask) -> None:
        draw_graph(telemetry, step, measured)
        if draw_rollout is not None:
            draw_rollout(telemetry, step, measured)

    return train(task, source, validation, config, val_ids=val_ids, picture=pictures)


if __name__ == "__main__":
    schema.launch(schema.TrainWorldModel, main)
