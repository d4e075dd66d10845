"""Prediction errors of a world model: one step, and a rollout of 32 frames, beside simple methods.

    windows, videos ──methods──> predictions ──squared_errors──> per object
        ──ErrorTable──> sums by (video, method, class) ──bootstrap──> means, intervals

Slot error: mean over the D dimensions of a slot of the squared difference. Position error: root
mean squared distance of probed positions (`position_probe.py`) from the true ones, world units. An
object counts where it is in view in the target frame and in the last two observed frames, since one
frame shows no velocity. Intervals are 95 %, from a bootstrap over videos.

Colliding objects are rare, so half of the windows have a contact. This biases no class, but `all`
is over that mixture: compare it between methods, not with other work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES, VIDEO_FRAMES
from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import batched, read_split
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.graphs import distinct_windows, window_videos
from cjepa_dist.evaluation.position_probe import PositionProbe, fit_position_probe
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.progress import report_progress

FUTURE_FRAMES = GROUND_TRUTH_FRAMES - VIDEO_FRAMES
HORIZONS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)  # frames after the video: a curve
OBJECT_CLASSES = ("all", "colliding", "near_miss", "free")
Predict = Callable[[Tensor], Tensor]


class ErrorTable:
    """Sums of squared slot errors, squared position errors and numbers of objects.

    By video, and by method, class of objects, and column, such as the frame of a rollout.
    """

    def __init__(
        self, methods: list[str], classes: tuple[str, ...], columns: tuple[str, ...]
    ) -> None:
        self.methods, self.classes, self.columns = methods, classes, columns
        self.sums: dict[int, np.ndarray] = {}  # by video: (methods, classes, columns, 3)

    def add(
        self, video: np.ndarray, method: str, column: str, errors: Tensor, masks: dict[str, Tensor]
    ) -> None:
        """Add `squared_errors` (B, F, S, 2) of videos (B,), where masks[class] (B, F, S)."""
        m, c = self.methods.index(method), self.columns.index(column)
        shape = (len(self.methods), len(self.classes), len(self.columns), 3)
        for k, name in enumerate(self.classes):
            mask = masks[name].to(errors.dtype)
            total = (errors * mask[..., None]).sum((1, 2))
            sums = torch.cat([total, mask.sum((1, 2))[:, None]], dim=-1).double().numpy()
            for v, row in zip(video.tolist(), sums):
                self.sums.setdefault(v, np.zeros(shape))[m, k, c] += row

    def summary(self, *, position: bool, draws: int, seed: int) -> dict[str, Any]:
        """{method: {class: {column: {slot_mse, position_rmse, their _ci, count}}}}, for JSON.

        None where no object counts, or where `position` errors are not known.
        """
        sums = np.stack([self.sums[v] for v in sorted(self.sums)])
        errors, (low, high) = mean_errors(sums), bootstrap(sums, mean_errors, draws, seed)
        result: dict[str, Any] = {}
        for m, method in enumerate(self.methods):
            for k, name in enumerate(self.classes):
                for c, column in enumerate(self.columns):
                    cell: dict[str, Any] = {"count": int(sums[:, m, k, c, 2].sum())}
                    for q, quantity in enumerate(("slot_mse", "position_rmse")):
                        at = (m, k, c, q)
                        known = cell["count"] > 0 and (quantity == "slot_mse" or position)
                        cell[quantity] = float(errors[at]) if known else None
                        interval = [float(low[at]), float(high[at])] if known else None
                        cell[f"{quantity}_ci"] = interval
                    result.setdefault(method, {}).setdefault(name, {})[column] = cell
        return result

    def by_video(self, methods: list[str], columns: list[str]) -> dict[str, Any]:
        """`videos`, and {method: {class: {column: [[sum of slot errors, objects], ...]}}}.

        For JSON; of these sums runs are compared (`paired.py`).
        """
        videos = sorted(self.sums)
        sums = np.stack([self.sums[v] for v in videos])
        result: dict[str, Any] = {"videos": videos}
        for method in methods:
            for k, name in enumerate(self.classes):
                for column in columns:
                    at = (self.methods.index(method), k, self.columns.index(column))
                    pairs = [
                        [float(f"{x[0]:.7g}"), int(x[2])] for x in sums[:, at[0], at[1], at[2]]
                    ]
                    result.setdefault(method, {}).setdefault(name, {})[column] = pairs
        return result


def mean_errors(sums: np.ndarray) -> np.ndarray:
    """(V, ..., 3) of an ErrorTable -> (..., 2): mean slot error, RMS distance; nan if empty."""
    total = sums.sum(axis=0)
    count = np.where(total[..., 2] > 0, total[..., 2], np.nan)
    return np.stack([total[..., 0] / count, np.sqrt(total[..., 1] / count)], axis=-1)


@torch.no_grad()
def evaluate_world_model(
    predictor: SlotPredictor,
    config: TrainWorldModel,
    data: str | Path,
    split: str,
    *,
    windows: int = 8192,
    videos: int = 200,
    own_slot: SlotPredictor | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Errors of one step over `windows` windows and of rollouts over `videos` videos (0 = all).

    `own_slot` is a control: a predictor of the same shapes that sees only the object's own slot.
    Without ground truth (real videos), positions, contacts and the future are unknown: there are
    only slot errors of one step over all slots, and the other entries are None.
    """
    predictors: dict[str, SlotPredictor] = {"predictor": predictor.eval()}
    if own_slot is not None:
        shapes = [
            (p.config.history_frames, p.config.pred_frames, p.config.slots, p.config.slot_dim)
            for p in (predictor, own_slot)
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"own_slot has (history_frames, pred_frames, slots, slot_dim) {shapes[1]}, the run "
                f"has {shapes[0]}: they must be equal"
            )
        predictors["own_slot"] = own_slot.eval()
    probe = (
        fit_position_probe(data, config.train_split, seed=seed) if has_truth(data, split) else None
    )
    result: dict[str, Any] = {
        "history_frames": predictor.config.history_frames,
        "pred_frames": predictor.config.pred_frames,
        "frameskip": config.frameskip,
        "units": {
            "slot_mse": "mean squared difference of a slot's numbers",
            "position_rmse": "world units",
            "horizon": "video frames",
        },
        "probe_rmse": probe.rmse if probe else None,
    }
    result["one_step"] = one_step_errors(
        predictors, config, data, split, probe, windows=windows, draws=draws, seed=seed
    )
    result["rollout"] = None
    if probe:
        result["rollout"] = rollout_errors(
            predictors, config, data, split, probe, videos=videos, draws=draws, seed=seed
        )
    return result


def one_step_errors(
    predictors: dict[str, SlotPredictor],
    config: TrainWorldModel,
    data: str | Path,
    split: str,
    probe: PositionProbe | None,
    *,
    windows: int,
    draws: int,
    seed: int,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Errors on the T_p frames after the history.

    Colliding objects have a contact within the predicted interval; near misses come close without.
    """
    history, future = config.predictor.history_frames, config.predictor.pred_frames
    dataset = InMemoryWindows(
        str(data),
        split,
        WindowSpec(history_frames=history, pred_frames=future, frameskip=config.frameskip),
        contact_share=0.5 if probe else 0.0,
        truth=probe is not None,
    )
    ids = distinct_windows(dataset, seed, windows)
    methods: dict[str, Predict] = {
        "copy": lambda frames: copy_last_frame(frames, future),
        "linear": lambda frames: extrapolate_linearly(frames, future),
    }
    methods |= {
        name: run_on_model_device(model, model.predict) for name, model in predictors.items()
    }
    table = ErrorTable(list(methods), OBJECT_CLASSES if probe else OBJECT_CLASSES[:1], ("mean",))
    for begin in range(0, len(ids), batch_size):
        part = ids[begin : begin + batch_size]
        batch = to_device(dataset.get_batch(part, part), torch.device("cpu"))
        slots, present = batch["slots"], batch["present"]
        counted = in_view(present, history - 1, 1) & present[:, history:]
        masks = class_masks(counted, batch) if probe else {"all": counted}
        position = batch["position"][:, history:] if probe else None
        for name, predict in methods.items():
            predicted = predict(slots[:, :history])
            errors = squared_errors(predicted, slots[:, history:], position, probe)
            table.add(window_videos(dataset, part), name, "mean", errors, masks)
        report_progress(begin + len(part), len(ids), "windows")
    return {
        "windows": len(ids),
        "videos": len(table.sums),
        "methods": table.summary(position=probe is not None, draws=draws, seed=seed),
        "by_video": table.by_video(list(predictors), ["mean"]),
    }


def class_masks(counted: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """{class: (B, F, S)}, of the objects that are `counted`; a colliding object is no near miss."""
    colliding = batch["collides"][:, None]
    near_miss = batch["near_miss"].any(-1)[:, None] & ~colliding
    return {
        "all": counted,
        "colliding": counted & colliding,
        "near_miss": counted & near_miss,
        "free": counted & ~colliding & ~near_miss,
    }


def rollout_errors(
    predictors: dict[str, SlotPredictor],
    config: TrainWorldModel,
    data: str | Path,
    split: str,
    probe: PositionProbe,
    *,
    videos: int,
    draws: int,
    seed: int,
    batch_size: int = 32,
) -> dict[str, Any] | None:
    """Errors on the frames after the video, given the video; None if the data has no future slots.

    Colliding objects have a contact in those frames.
    """
    skip = config.frameskip
    methods: dict[str, Predict] = {
        "copy": lambda frames: copy_last_frame(frames, FUTURE_FRAMES),
        "linear": lambda frames: extrapolate_linearly(
            frames[:, [-1 - skip, -1]], FUTURE_FRAMES, skip
        ),
    }
    for name, model in predictors.items():
        rollout = partial(model.rollout, count=FUTURE_FRAMES, frameskip=skip)
        methods[name] = run_on_model_device(model, rollout)
    columns = ("mean", *map(str, HORIZONS))
    table = ErrorTable(list(methods), ("all", "colliding", "free"), columns)
    count = min(videos, Manifest.load(data).count(split))
    samples = read_split(data, split, ("slots.npy", "truth.npz"), videos=count)
    for number, group in enumerate(batched(samples, batch_size)):
        truths = [sample.truth or {} for sample in group]
        if not all("future_slots" in truth for truth in truths):
            return None
        slots = np.stack([np.asarray(sample.slots)[:VIDEO_FRAMES] for sample in group])
        future = np.stack([truth["future_slots"] for truth in truths])
        position = np.stack([truth["position"][VIDEO_FRAMES:] for truth in truths])
        present = torch.from_numpy(np.stack([truth["present"] for truth in truths]))
        counted = in_view(present, VIDEO_FRAMES - 1, skip) & present[:, VIDEO_FRAMES:]
        colliding = torch.zeros(len(group), 1, slots.shape[2], dtype=torch.bool)
        for b, truth in enumerate(truths):
            contacts = truth["contacts"][truth["contacts"][:, 0] >= VIDEO_FRAMES]
            colliding[b, 0, contacts[:, 1:].astype(np.int64).ravel()] = True
        masks = {"all": counted, "colliding": counted & colliding, "free": counted & ~colliding}
        video = number * batch_size + np.arange(len(group))
        for name, predict in methods.items():
            errors = squared_errors(
                predict(torch.from_numpy(to_float32(slots))),
                torch.from_numpy(to_float32(future)),
                torch.from_numpy(position).float(),
                probe,
            )
            table.add(video, name, "mean", errors, masks)
            for horizon in HORIZONS:
                at = slice(horizon - 1, horizon)
                at_horizon = {name: mask[:, at] for name, mask in masks.items()}
                table.add(video, name, str(horizon), errors[:, at], at_horizon)
    return {
        "videos": len(table.sums),
        "frames": FUTURE_FRAMES,
        "methods": table.summary(position=True, draws=draws, seed=seed),
        "by_video": table.by_video(list(predictors), ["mean", str(FUTURE_FRAMES)]),
    }


def in_view(present: Tensor, last: int, spacing: int) -> Tensor:
    """(B, T, S) -> (B, 1, S): in view at frame `last`, and `spacing` before if that exists."""
    return present[:, [max(0, last - spacing), last]].all(1, keepdim=True)


def squared_errors(
    predicted: Tensor, target: Tensor, position: Tensor | None, probe: PositionProbe | None
) -> Tensor:
    """(B, F, S, D) twice -> (B, F, S, 2): squared slot error, squared distance from `position`.

    The distance is 0 where the true `position` (B, F, S, 2) is unknown.
    """
    slot_error = (predicted - target).square().mean(-1)
    distance = torch.zeros_like(slot_error)
    if probe is not None and position is not None:
        distance = (probe(predicted) - position).square().sum(-1)
    return torch.stack([slot_error, distance], dim=-1)


def copy_last_frame(frames: Tensor, count: int) -> Tensor:
    """(B, T, S, D) -> (B, count, S, D)."""
    return frames[:, -1:].expand(-1, count, -1, -1)


def extrapolate_linearly(frames: Tensor, count: int, spacing: int = 1) -> Tensor:
    """The line through the last two frames of each slot, (B, T, S, D) -> (B, count, S, D).

    These are `spacing` predicted frames apart. A single frame is copied.
    """
    if frames.shape[1] < 2:
        return copy_last_frame(frames, count)
    change = (frames[:, -1:] - frames[:, -2:-1]) / spacing
    steps = torch.arange(1, count + 1, dtype=frames.dtype)[None, :, None, None]
    return frames[:, -1:] + steps * change


def run_on_model_device(model: SlotPredictor, predict: Predict) -> Predict:
    """`predict` with its input moved to the model's device and its result back."""
    device = next(model.parameters()).device
    return lambda frames: predict(frames.to(device)).cpu()


def has_truth(data: str | Path, split: str) -> bool:
    first = read_split(data, split, ("truth.npz",), videos=1)
    return all(sample.truth is not None for sample in first)
