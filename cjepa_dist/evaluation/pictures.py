"""Pictures for TensorBoard: the graph of a few samples beside a heat map of the published one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cjepa_dist.causal.graph import estimate
from cjepa_dist.config import GraphConfig
from cjepa_dist.data.windows import ResidentWindows
from cjepa_dist.tasks import WorldModelTask
from cjepa_dist.training.telemetry import Telemetry

ESTIMATORS = ("published", "attention", "interventional")


def graph_picture(source: ResidentWindows, ids: np.ndarray, samples: int = 4) -> Callable[[Telemetry, int, WorldModelTask], None]:
    """A callback for the loop that draws the adjacency of `samples` windows, estimators as rows, as a task sees them after a step."""
    batch = source.gather(chosen := ids[:: max(1, len(ids) // samples)][:samples], chosen.astype(np.int64))

    def draw(telemetry: Telemetry, step: int, task: WorldModelTask) -> None:
        frames = task.config.predictor.history_frames
        device = task.sigma2.device
        history, present = batch["slots"][:, :frames].to(device), batch["present"][:, frames - 1].to(device)
        context = task.graph_context(batch["sample"].to(device), step)
        task.eval()
        with torch.no_grad():
            maps = [
                estimate(GraphConfig(estimator=name), task.predictor, history, present, context=context).adjacency.float().cpu().numpy()
                for name in ESTIMATORS
            ]
        task.train()
        telemetry.image(step, "graph/" + "_".join(ESTIMATORS), tile(maps))

    return draw


def tile(rows: list[np.ndarray], cell: int = 12, gap: int = 6) -> np.ndarray:
    """Rows of (B, S, S) arrays in [0, 1] -> one (H, W, 3) uint8 picture; dark is a strong edge."""
    lines = []
    for maps in rows:
        big = 1 - np.clip(maps, 0, 1).repeat(cell, 1).repeat(cell, 2)
        lines.append(np.concatenate([np.pad(m, ((gap, gap), (gap, gap)), constant_values=0.6) for m in big], 1))
    grey = (255 * np.concatenate(lines, 0)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2)
