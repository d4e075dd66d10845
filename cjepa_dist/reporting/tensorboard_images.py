"""Callbacks that draw for TensorBoard during training: graphs, rollouts, a video from above.

training loop ──> callback(logger, step, task) ──> logger.add_image, logger.add_animation

They draw no random numbers: training is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import torch

from cjepa_dist.causal.graph import estimate_graph
from cjepa_dist.config.schema import GraphConfig, TrainWorldModel
from cjepa_dist.data.windows import PRESENT_DISTANCE, InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import PositionProbe, fit_position_probe
from cjepa_dist.reporting.scene.image import gif_bytes
from cjepa_dist.reporting.scene.reader import SceneReader
from cjepa_dist.reporting.scene.video import Video, eventful_videos, open_video
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.logger import RunLogger

Callback = Callable[[RunLogger, int, WorldModelTask], None]
ESTIMATORS = ("published", "attention", "interventional")
ROLLOUT_FRAMES = 32  # in the image of a rollout
SCENE_FRAME_STEP, SCENE_SCALE = 5, 0.8  # of the animation: it may take a second, no more
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


def graph_image_callback(dataset: InMemoryWindows, ids: np.ndarray, samples: int = 4) -> Callback:
    """Draws the adjacency of `samples` windows, a row per estimator."""
    chosen = ids[:: max(1, len(ids) // samples)][:samples]
    windows = dataset.get_batch(chosen, chosen.astype(np.int64))

    def draw(logger: RunLogger, step: int, task: WorldModelTask) -> None:
        frames = task.config.predictor.history_frames
        batch = to_device(windows, task.sigma2.device)
        history, present = batch["slots"][:, :frames], batch["present"][:, frames - 1]
        context = task.graph_context(batch["sample"], step)
        adjacencies = []
        task.eval()
        with torch.no_grad():
            for name in ESTIMATORS:
                graph = estimate_graph(
                    GraphConfig(estimator=name), task.predictor, history, present, context=context
                )
                adjacencies.append(graph.adjacency.float().cpu().numpy())
        task.train()
        logger.add_image(step, "graph/" + "_".join(ESTIMATORS), tile_heatmaps(adjacencies))

    return draw


def tile_heatmaps(rows: list[np.ndarray], cell: int = 12, gap: int = 6) -> np.ndarray:
    """Rows of (B, S, S) arrays in [0, 1] -> one (H, W, 3) uint8 image; dark is a strong edge."""
    lines = []
    for maps in rows:
        cells = 1 - np.clip(maps, 0, 1).repeat(cell, 1).repeat(cell, 2)
        tiles = [np.pad(m, ((gap, gap), (gap, gap)), constant_values=0.6) for m in cells]
        lines.append(np.concatenate(tiles, 1))
    grey = (255 * np.concatenate(lines, 0)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2)


def rollout_image_callback(
    config: TrainWorldModel, dataset: InMemoryWindows, videos: int = 4
) -> Callback | None:
    """Draws the last frames of `videos` videos, and below them the rollout of what came before.

    Slots are drawn at the positions that a probe reads from them, where the data has ground truth;
    else in the plane in which the true slots vary most. None where the videos are too short.
    """
    frames = dataset.shape[0]
    count = min(ROLLOUT_FRAMES, frames - config.predictor.history_frames * config.frameskip)
    if count < 1:
        return None
    numbers = np.linspace(0, dataset.num_videos - 1, min(videos, dataset.num_videos))
    chosen = numbers.astype(np.int64)
    slots = torch.from_numpy(np.stack([dataset.read_video(v) for v in chosen]))
    past, future = slots[:, : frames - count], slots[:, frames - count :]
    present = torch.ones(future.shape[:3], dtype=torch.bool)
    if dataset.present is not None:
        present = torch.from_numpy(dataset.present[chosen, frames - count : frames])
    elif dataset.empty is not None:
        present = (future - dataset.empty).square().mean(-1) > PRESENT_DISTANCE

    @cache  # only in the process that draws
    def projection() -> Callable[[torch.Tensor], torch.Tensor]:
        probe = position_probe(config) if dataset.present is not None else None
        return probe or principal_plane(future[present])

    def draw(logger: RunLogger, step: int, task: WorldModelTask) -> None:
        task.eval()
        with torch.no_grad():
            predicted = task.predictor.rollout(past.to(task.sigma2.device), count, config.frameskip)
        task.train()
        paths = [projection()(values).numpy() for values in (future, predicted.float().cpu())]
        image = draw_paths(paths, present.numpy())
        logger.add_image(step, "rollout/truth_above_prediction", image)

    return draw


def scene_callback(config: TrainWorldModel, dataset: InMemoryWindows) -> Callback | None:
    """Draws one video of the validation split from above, as an animation.

    The same at every step: the most eventful by the simulator's truth. None where the data does not
    say where objects are, or the videos are too short for a rollout.
    """
    first_frame = config.predictor.history_frames * config.frameskip
    if dataset.present is None or dataset.shape[0] < first_frame:
        return None

    @cache
    def number() -> int:
        return eventful_videos(config.data, config.val_split, 1, first_frame)[0]

    @cache
    def video() -> Video | None:
        try:
            return open_video(config.data, config.val_split, number())
        except UserError as error:  # no reason to end a run
            print(f"no video is drawn for TensorBoard: {error}", flush=True)
            return None

    def draw(logger: RunLogger, step: int, task: WorldModelTask) -> None:
        probe = position_probe(config)
        if probe is None or (opened := video()) is None:
            return
        task.eval()
        scene = SceneReader(task, probe, graph_every=SCENE_FRAME_STEP).draw(opened)
        task.train()
        frames = range(0, scene.frames, SCENE_FRAME_STEP)
        content, size = gif_bytes(scene, frames, SCENE_SCALE)
        logger.add_animation(step, "scene/from_above", content, size)

    return draw


@lru_cache(maxsize=1)
def fitted_probe(data: str, split: str) -> PositionProbe | None:
    return fit_position_probe(data, split, videos=50)


def position_probe(config: TrainWorldModel) -> PositionProbe | None:
    """From slots to positions, fitted for the first image. None where the data has no positions."""
    return fitted_probe(config.data, config.train_split)


def principal_plane(slots: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """(..., D) -> (..., 2): the projection on the plane in which `slots` (N, D) vary most."""
    mean = slots.mean(0) if len(slots) else slots.sum(0)
    axes = torch.linalg.eigh((slots - mean).T @ (slots - mean))[1][:, -2:]
    return lambda values: (values - mean) @ axes


def draw_paths(paths: list[np.ndarray], present: np.ndarray, side: int = 160) -> np.ndarray:
    """Paths (V, F, S, 2), where `present` (V, F, S) -> one (H, W, 3) uint8 image.

    A row per array of paths, a column per video, a colour per slot; early frames are pale. A column
    has the scale of its first row: a rollout that is far from the truth leaves the image.
    """
    videos, frames = present.shape[:2]
    tiles = np.full((len(paths), videos, side, side, 3), 255, np.uint8)
    tiles[:, :, [0, -1]] = tiles[:, :, :, [0, -1]] = 160  # borders
    for v in range(videos):
        if not present[v].any():
            continue
        known = paths[0][v][present[v]]
        low, high = known.min(0), known.max(0)
        scale = (side - 16) / max(float((high - low).max()), 1e-6)
        for row, path in enumerate(paths):
            pixels = (path[v] - (low + high) / 2) * scale + side / 2
            pixels = np.clip(pixels, -9, side + 9).astype(int)
            for f, s in np.argwhere(present[v]):
                x, y = pixels[f, s]
                strength = 0.25 + 0.75 * (f + 1) / frames
                colour = 255 - strength * (255 - COLOURS[s % len(COLOURS)])
                dot = np.s_[max(0, y - 1) : max(0, y + 2), max(0, x - 1) : max(0, x + 2)]
                tiles[row, v][dot] = colour.astype(np.uint8)
    return np.concatenate([np.concatenate(list(row), 1) for row in tiles], 0)
