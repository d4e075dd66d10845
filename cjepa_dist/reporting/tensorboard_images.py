"""Pictures for TensorBoard: the graph of a few samples beside a heat map of the published one; a rollout under the truth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from cjepa_dist.causal.graph import estimate
from cjepa_dist.config.schema import GraphConfig, TrainWorldModel
from cjepa_dist.data.windows import PRESENT, InMemoryWindows, to_device
from cjepa_dist.evaluation.position_probe import fit_probe
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import RunLogger

ESTIMATORS = ("published", "attention", "interventional")
AHEAD = 32  # video frames of a rollout's picture
COLOURS = np.array(
    [
        (31, 119, 180),
        (214, 39, 40),
        (44, 160, 44),
        (255, 127, 14),
        (148, 103, 189),
        (23, 190, 207),
        (140, 86, 75),
    ]
)


def graph_picture(
    source: InMemoryWindows, ids: np.ndarray, samples: int = 4
) -> Callable[[RunLogger, int, WorldModelTask], None]:
    """A callback for the loop that draws the adjacency of `samples` windows, estimators as rows, as a task sees them after a step."""
    batch = source.gather(
        chosen := ids[:: max(1, len(ids) // samples)][:samples], chosen.astype(np.int64)
    )

    def draw(telemetry: RunLogger, step: int, task: WorldModelTask) -> None:
        frames = task.config.predictor.history_frames
        part = to_device(batch, task.sigma2.device)
        history, present = part["slots"][:, :frames], part["present"][:, frames - 1]
        context = task.graph_context(part["sample"], step)
        task.eval()
        with torch.no_grad():
            maps = [
                estimate(
                    GraphConfig(estimator=name), task.predictor, history, present, context=context
                )
                .adjacency.float()
                .cpu()
                .numpy()
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
        lines.append(
            np.concatenate(
                [np.pad(m, ((gap, gap), (gap, gap)), constant_values=0.6) for m in big], 1
            )
        )
    grey = (255 * np.concatenate(lines, 0)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2)


def rollout_picture(
    config: TrainWorldModel, source: InMemoryWindows, videos: int = 4
) -> Callable[[RunLogger, int, WorldModelTask], None] | None:
    """A callback for the loop that draws the last frames of `videos` videos: the truth, and below it the rollout from what came before.

    Slots are shown at the positions that a probe reads from them where the data have truth, else along the two directions in which true
    slots vary most. None where the videos are too short for the history and a frame more.
    """
    frames = source.shape[0]
    count = min(AHEAD, frames - config.predictor.history_frames * config.frameskip)
    if count < 1:
        return None
    chosen = np.linspace(0, source.videos - 1, min(videos, source.videos)).astype(np.int64)
    seen = torch.from_numpy(np.stack([source.video(v) for v in chosen]))
    past, truth = seen[:, : frames - count], seen[:, frames - count :]
    shown = torch.ones(truth.shape[:3], dtype=torch.bool)
    if source.present is not None:
        shown = torch.from_numpy(source.present[chosen, frames - count : frames])
    elif source.empty is not None:
        shown = (truth - source.empty).square().mean(-1) > PRESENT

    @cache  # fitted when the first picture is drawn, on the rank that draws
    def plane() -> Callable[[torch.Tensor], torch.Tensor]:
        return (
            fit_probe(config.data, config.train_split, videos=50)
            if source.present is not None
            else None
        ) or principal(truth[shown])

    def draw(telemetry: RunLogger, step: int, task: WorldModelTask) -> None:
        task.eval()
        with torch.no_grad():
            found = (
                task.predictor.rollout(past.to(task.sigma2.device), count, config.frameskip)
                .float()
                .cpu()
            )
        task.train()
        paths = [plane()(values).numpy() for values in (truth, found)]
        telemetry.image(step, "rollout/truth_above_prediction", panels(paths, shown.numpy()))

    return draw


def principal(slots: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """(..., D) -> (..., 2): the two directions in which `slots` (N, D) vary most."""
    centre = slots.mean(0) if len(slots) else slots.sum(0)
    axes = torch.linalg.eigh((slots - centre).T @ (slots - centre))[1][:, -2:]
    return lambda values: (values - centre) @ axes


def panels(paths: list[np.ndarray], shown: np.ndarray, side: int = 160) -> np.ndarray:
    """Rows of paths (V, F, S, 2), where `shown` (V, F, S) -> one (H, W, 3) uint8 picture: a video a column, a colour a slot, early is pale.

    A column's rows have the scale of its first: a rollout that leaves the truth's neighbourhood leaves the picture.
    """
    videos, frames = shown.shape[:2]
    pictures = np.full((len(paths), videos, side, side, 3), 255, np.uint8)
    pictures[:, :, [0, -1]] = pictures[:, :, :, [0, -1]] = 160
    for v in range(videos):
        if not shown[v].any():
            continue
        known = paths[0][v][shown[v]]
        low, high = known.min(0), known.max(0)
        scale = (side - 16) / max(float((high - low).max()), 1e-6)
        for r, path in enumerate(paths):
            for f in range(frames):
                strength = 0.25 + 0.75 * (f + 1) / frames
                for s in np.flatnonzero(shown[v, f]):
                    x, y = np.clip(
                        (path[v, f, s] - (low + high) / 2) * scale + side / 2, -9, side + 9
                    ).astype(int)
                    pictures[r, v, max(0, y - 1) : max(0, y + 2), max(0, x - 1) : max(0, x + 2)] = (
                        255 - strength * (255 - COLOURS[s % len(COLOURS)])
                    ).astype(np.uint8)
    return np.concatenate([np.concatenate(list(row), 1) for row in pictures], 0)
