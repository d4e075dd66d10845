"""How well a world model predicts: one step, and rolled out over 32 frames; free and colliding objects apart; simple methods beside it.

    windows, videos ──> predictions of each method ──> squared errors by object ──> sums by (video, method, class) ──> means, intervals

Slot error: mean over the D numbers of a slot of the squared difference. Position error: root mean squared distance of probed positions
(evaluation/position_probe.py) from the true ones, world units. An object counts where it is in view in the last two observed frames of the model
(one frame shows no velocity) and in the target frame.
Intervals are 95 %, from a bootstrap over videos. Windows are enriched with contacts: colliding objects are rare. That biases no class;
`all` is over the enriched mixture (the counts say which), so compare it between methods, not with other work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.graphs import distinct_windows, videos_of
from cjepa_dist.evaluation.position_probe import Probe, fit_probe
from cjepa_dist.models.predictor import SlotPredictor

OBSERVED, FUTURE = 128, 32
HORIZONS = (8, 16, 32)
CLASSES = ("all", "colliding", "near_miss", "free")
Predict = Callable[[Tensor], Tensor]


class Table:
    """Sums by (video, method, class, column) of squared slot error, squared position error, and how many objects they are over."""

    def __init__(
        self, methods: list[str], classes: tuple[str, ...], columns: tuple[str, ...]
    ) -> None:
        self.methods, self.classes, self.columns = methods, classes, columns
        self.rows: dict[int, np.ndarray] = {}

    def add(
        self, video: np.ndarray, method: str, column: str, errors: Tensor, seen: dict[str, Tensor]
    ) -> None:
        """errors (B, F, S, 2): squared slot and position error; seen[class] (B, F, S) bool; video (B,)."""
        m, c = self.methods.index(method), self.columns.index(column)
        for k, name in enumerate(self.classes):
            mask = seen[name].to(errors.dtype)
            total = (
                torch.cat(
                    [(errors * mask[..., None]).sum((1, 2)), mask.sum((1, 2))[:, None]], dim=-1
                )
                .double()
                .numpy()
            )
            for v, row in zip(video.tolist(), total):
                self.rows.setdefault(
                    v, np.zeros((len(self.methods), len(self.classes), len(self.columns), 3))
                )[m, k, c] += row

    def summary(self, *, position: bool, draws: int, seed: int) -> dict[str, Any]:
        """{method: {class: {column: {slot_mse, slot_mse_ci, position_rmse, position_rmse_ci, count}}}}; None where nothing was counted."""
        values = np.stack([self.rows[v] for v in sorted(self.rows)])
        point, (low, high) = means(values), bootstrap(values, means, draws, seed)
        result: dict[str, Any] = {}
        for m, method in enumerate(self.methods):
            for k, name in enumerate(self.classes):
                for c, column in enumerate(self.columns):
                    at = (m, k, c)
                    cell: dict[str, Any] = {"count": int(values[:, m, k, c, 2].sum())}
                    for q, quantity in enumerate(("slot_mse", "position_rmse")):
                        known = cell["count"] > 0 and (q == 0 or position)
                        cell[quantity] = float(point[at][q]) if known else None
                        cell[quantity + "_ci"] = (
                            [float(low[at][q]), float(high[at][q])] if known else None
                        )
                    result.setdefault(method, {}).setdefault(name, {})[column] = cell
        return result


def means(values: np.ndarray) -> np.ndarray:
    """(V, ..., 3) sums by video -> (..., 2): mean slot error, root mean squared distance; nan where nothing was counted."""
    total = values.sum(axis=0)
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
    """Errors of one step over `windows` windows and of rollouts over `videos` videos (0 = all), as a plain dict.

    `own_slot` is a predictor of the same history, horizon and frameskip that sees only the object's own slot. Data without truth (real
    videos) have errors of one step over all slots only: positions, contacts and the future are unknown there, and the entries are None.
    """
    predictors: dict[str, SlotPredictor] = {"predictor": predictor.eval()}
    if own_slot is not None:
        shapes = [
            (p.config.history_frames, p.config.pred_frames, p.config.slots, p.config.slot_dim)
            for p in (predictor, own_slot)
        ]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"own_slot has (history, prediction, slots, slot_dim) {shapes[1]}, the run has {shapes[0]}: they must agree"
            )
        predictors["own_slot"] = own_slot.eval()
    probe = fit_probe(data, config.train_split, seed=seed) if has_truth(data, split) else None
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
    result["one_step"] = one_step(
        predictors, config, data, split, probe, windows=windows, draws=draws, seed=seed
    )
    result["rollout"] = (
        rollout(predictors, config, data, split, probe, videos=videos, draws=draws, seed=seed)
        if probe
        else None
    )
    return result


def one_step(
    predictors: dict[str, SlotPredictor], config: TrainWorldModel, data: str | Path, split: str, probe: Probe | None,
    *, windows: int, draws: int, seed: int, batch: int = 256,
) -> dict[str, Any]:  # fmt: skip
    """Error on the T_p frames after the history. Colliding: in a contact within the predicted interval; near miss: close, no contact."""
    history, ahead = config.predictor.history_frames, config.predictor.pred_frames
    shape: dict[str, Any] = {
        "history_frames": history,
        "pred_frames": ahead,
        "frameskip": config.frameskip,
    }
    source = InMemoryWindows(
        str(data), split, **shape, contact_share=0.5 if probe else 0.0, truth=probe is not None
    )
    ids = distinct_windows(source, seed, windows)
    methods: dict[str, Predict] = {
        "copy": lambda x: copy(x, ahead),
        "linear": lambda x: linear(x, ahead),
    }
    methods |= {name: on_its_device(model, model.predict) for name, model in predictors.items()}
    table = Table(list(methods), CLASSES if probe else CLASSES[:1], ("mean",))
    for begin in range(0, len(ids), batch):
        part = ids[begin : begin + batch]
        sample = to_device(source.gather(part, part), torch.device("cpu"))
        x, video = sample["slots"], videos_of(source, part)
        target = x[:, history:]
        present = sample["present"]
        seen = observed(present, history - 1, 1) & present[:, history:]
        past = x[:, :history]
        for name, predict in methods.items():
            found = predict(past)
            true = sample["position"][:, history:] if probe else None
            table.add(
                video,
                name,
                "mean",
                errors(found, target, true, probe),
                by_class(seen, sample) if probe else {"all": seen},
            )
    return {
        "windows": len(ids),
        "videos": len(table.rows),
        "methods": table.summary(position=probe is not None, draws=draws, seed=seed),
    }


def by_class(seen: Tensor, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """seen (B, F, S) split into the classes; an object both colliding and in a near miss with another is colliding."""
    colliding = sample["collides"][:, None]
    near = sample["near_miss"].any(-1)[:, None] & ~colliding
    return {
        "all": seen,
        "colliding": seen & colliding,
        "near_miss": seen & near,
        "free": seen & ~colliding & ~near,
    }


def rollout(
    predictors: dict[str, SlotPredictor], config: TrainWorldModel, data: str | Path, split: str, probe: Probe,
    *, videos: int, draws: int, seed: int, batch: int = 32,
) -> dict[str, Any] | None:  # fmt: skip
    """Error on frames 128 .. 159 given 0 .. 127. Colliding: in a contact in those frames. None if the data have no future slots."""
    skip = config.frameskip
    methods: dict[str, Predict] = {
        "copy": lambda x: copy(x, FUTURE),
        "linear": lambda x: linear(x[:, [-1 - skip, -1]], FUTURE, skip),
    }
    methods |= {
        name: on_its_device(model, partial(model.rollout, count=FUTURE, frameskip=skip))
        for name, model in predictors.items()
    }
    columns = ("mean", *(str(h) for h in HORIZONS))
    table = Table(list(methods), ("all", "colliding", "free"), columns)
    known = read_split(
        data,
        split,
        ("slots.npy", "truth.npz"),
        videos=min(videos, Manifest.load(data).count(split)),
    )
    for first, group in enumerate(grouped(known, batch)):
        truths = [
            sample.truth
            for sample in group
            if sample.truth is not None and "future_slots" in sample.truth
        ]
        if len(truths) < len(group):
            return None
        frames = torch.from_numpy(
            widen(
                np.stack([sample.slots[:OBSERVED] for sample in group if sample.slots is not None])
            )
        )
        target = torch.from_numpy(widen(np.stack([truth["future_slots"] for truth in truths])))
        true = torch.from_numpy(
            np.stack([truth["position"][OBSERVED:] for truth in truths])
        ).float()
        present = torch.from_numpy(np.stack([truth["present"] for truth in truths]))
        seen = observed(present, OBSERVED - 1, skip) & present[:, OBSERVED:]
        colliding = torch.zeros(len(group), 1, frames.shape[2], dtype=torch.bool)
        for b, truth in enumerate(truths):
            late = truth["contacts"][truth["contacts"][:, 0] >= OBSERVED]
            colliding[b, 0, late[:, 1:].astype(np.int64).ravel()] = True
        classes = {"all": seen, "colliding": seen & colliding, "free": seen & ~colliding}
        video = first * batch + np.arange(len(group))
        for name, predict in methods.items():
            squares = errors(predict(frames), target, true, probe)
            table.add(video, name, "mean", squares, classes)
            for horizon in HORIZONS:
                at = slice(horizon - 1, horizon)
                table.add(
                    video,
                    name,
                    str(horizon),
                    squares[:, at],
                    {k: mask[:, at] for k, mask in classes.items()},
                )
    return {
        "videos": len(table.rows),
        "frames": FUTURE,
        "methods": table.summary(position=True, draws=draws, seed=seed),
    }


def observed(present: Tensor, last: int, spacing: int) -> Tensor:
    """(B, T, S) bool -> (B, 1, S): in view at frame `last`, and `spacing` frames before if there is such a frame."""
    return present[:, [max(0, last - spacing), last]].all(1, keepdim=True)


def errors(found: Tensor, target: Tensor, position: Tensor | None, probe: Probe | None) -> Tensor:
    """(B, F, S, D) twice, true positions (B, F, S, 2) -> (B, F, S, 2): squared slot error, squared distance (0 without truth)."""
    slot = (found - target).square().mean(-1)
    place = (
        (probe(found) - position).square().sum(-1)
        if probe is not None and position is not None
        else torch.zeros_like(slot)
    )
    return torch.stack([slot, place], dim=-1)


def copy(frames: Tensor, count: int) -> Tensor:
    """The last frame, again and again: (B, T, S, D) -> (B, count, S, D)."""
    return frames[:, -1:].expand(-1, count, -1, -1)


def linear(frames: Tensor, count: int, spacing: int = 1) -> Tensor:
    """The straight line through each slot's last two frames, which are `spacing` target frames apart: (B, T, S, D) -> (B, count, S, D).

    With a history of one frame there is no line: the last frame is copied.
    """
    if frames.shape[1] < 2:
        return copy(frames, count)
    change = (frames[:, -1:] - frames[:, -2:-1]) / spacing
    ahead = torch.arange(1, count + 1, dtype=frames.dtype)[None, :, None, None]
    return frames[:, -1:] + ahead * change


def on_its_device(model: SlotPredictor, predict: Predict) -> Predict:
    """`predict` with its input moved to the model's device and its result back."""
    device = next(model.parameters()).device
    return lambda x: predict(x.to(device)).cpu()


def has_truth(data: str | Path, split: str) -> bool:
    return all(
        sample.truth is not None for sample in read_split(data, split, ("truth.npz",), videos=1)
    )


def grouped(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of up to `size` consecutive samples."""
    while group := list(islice(samples, size)):
        yield group
