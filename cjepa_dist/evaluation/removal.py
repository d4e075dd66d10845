"""What taking out an object does to the predictions of the others, by what is true of the pair.

    windows ──> predictions with everybody, and without each object j
        ──> for every other object i: change of its prediction, change of its error
        ──mean over the pairs of a class, bootstrap over videos──> {intervention: {class: ...}}

Classes of the pair (i, j): `contact` (they touch in the window), `near_miss` (close, no contact),
`other`. In the true world only a contact may change anything. What the invariance loss compares are
pairs whose error does not grow by more than the margin: `above_margin` is the share that it drops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal.attention_graph import present_pairs
from cjepa_dist.causal.graph import GraphContext
from cjepa_dist.causal.interventional_graph import predict_without_each
from cjepa_dist.config.schema import INTERVENTIONS
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap, pooled_mean
from cjepa_dist.evaluation.graphs import (
    distinct_windows,
    json_number,
    present_slots,
    window_videos,
)
from cjepa_dist.losses.ctt import normalized_error
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.progress import report_progress

CLASSES = ("contact", "near_miss", "other")
MEASURES = ("prediction_change", "error_change", "above_margin")


def evaluate_removal(
    predictor: SlotPredictor,
    dataset: InMemoryWindows,
    context: GraphContext,
    *,
    interventions: Sequence[str] = INTERVENTIONS,
    margin: float = 0.02,
    windows: int = 2048,
    batch_size: int = 128,
    draws: int = 200,
) -> dict[str, Any]:
    """`interventions[how][class]` = {pairs, measure: {value, low, high}}, for JSON.

    Errors and changes in residual variances: mean over frames and dimensions of the square over
    `context.sigma2`. `dataset` has labels, see `graphs.evaluate_graphs`; pairs are ordered pairs of
    present slots. Low and high bound 95 % of `draws` bootstrap draws over videos. Raises UserError
    if there are no labels.
    """
    if dataset.labels is None:
        raise UserError(
            "pairs are told apart by the simulator's truth, and this data set has none; simulate"
            " one with data_prep.simulate"
        )
    ids = distinct_windows(dataset, context.seed, windows)
    videos, video = np.unique(window_videos(dataset, ids), return_inverse=True)
    # sums[how][video, class, measure] = (sum, count)
    shape = (len(videos), len(CLASSES), len(MEASURES), 2)
    sums = {how: np.zeros(shape) for how in interventions}
    for index in np.array_split(np.arange(len(ids)), math.ceil(len(ids) / batch_size)):
        batch = to_device(
            dataset.get_batch(ids[index], index.astype(np.int64)), context.sigma2.device
        )
        present = present_slots(predictor, batch)
        classes = pair_classes(batch, present).cpu().numpy()
        for how in interventions:
            measured = removal_of(predictor, batch, present, context, how, margin)
            for c in range(len(CLASSES)):
                chosen = classes == c  # (b, S, S)
                for m, name in enumerate(MEASURES):
                    found = (measured[name] * chosen).sum(axis=(1, 2)), chosen.sum(axis=(1, 2))
                    for part, values in enumerate(found):
                        of_video = np.bincount(video[index], values, minlength=len(videos))
                        sums[how][:, c, m, part] += of_video
        report_progress(int(index[-1]) + 1, len(ids), "windows")
    return {
        "windows": len(ids),
        "videos": len(videos),
        "margin": margin,
        "bootstrap_draws": draws,
        "interventions": {
            how: summarize(of_video, draws, context.seed) for how, of_video in sums.items()
        },
    }


def removal_of(
    predictor: SlotPredictor,
    batch: dict[str, Tensor],
    present: Tensor,
    context: GraphContext,
    how: str,
    margin: float,
) -> dict[str, np.ndarray]:
    """Each measure of a batch, (B, S, S) at [b, i, j]: of slot i, when slot j is taken out."""
    frames = predictor.config.history_frames
    window = slice(frames, frames + predictor.config.pred_frames)
    truth = batch["slots"][:, window].float()
    factual, changed, of, slot = predict_without_each(
        predictor,
        batch["slots"][:, :frames],
        present,
        intervention=how,
        empty=context.empty,
        seed=context.seed,
        step=context.step,
        sample=batch["sample"],
    )
    change = normalized_error(changed, factual[of], context.sigma2)
    worse = normalized_error(changed, truth[of], context.sigma2)
    worse = worse - normalized_error(factual, truth, context.sigma2)[of]
    found = {
        "prediction_change": change,
        "error_change": worse,
        "above_margin": (worse > margin).float(),
    }
    result = {}
    for name, values in found.items():
        pairs = values.new_zeros(len(present), present.shape[1], present.shape[1])
        pairs[of, :, slot] = values
        result[name] = pairs.cpu().numpy()
    return result


def pair_classes(batch: dict[str, Tensor], present: Tensor) -> Tensor:
    """(B, S, S) int64: which of CLASSES a pair of present slots is; -1 for other pairs."""
    pairs, contact = present_pairs(present), batch["contact"].bool()
    classes = torch.full(pairs.shape, CLASSES.index("other"), device=pairs.device)
    classes[batch["near_miss"].bool()] = CLASSES.index("near_miss")
    classes[contact] = CLASSES.index("contact")
    classes[~pairs] = -1
    return classes


def summarize(of_video: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """The table of one intervention from its sums (videos, classes, measures, 2)."""
    values = pooled_mean(of_video)
    low, high = bootstrap(of_video, pooled_mean, draws, seed)
    return {
        name: {
            "pairs": int(of_video[:, c, 0, 1].sum()),
            **{
                measure: {
                    "value": json_number(values[c, m]),
                    "low": json_number(low[c, m]),
                    "high": json_number(high[c, m]),
                }
                for m, measure in enumerate(MEASURES)
            },
        }
        for c, name in enumerate(CLASSES)
    }


def removal_table(result: dict[str, Any]) -> str:
    """A Markdown table of what `evaluate_removal` returned."""
    lines = [
        "| taken out by | pair | pairs | prediction moves | error grows"
        f" | share above {result['margin']:g} |",
        "|---|---|---|---|---|---|",
    ]
    for how, classes in result["interventions"].items():
        for name, cells in classes.items():
            shown = " | ".join(show(cells[measure]) for measure in MEASURES)
            lines.append(f"| {how} | {name.replace('_', ' ')} | {cells['pairs']} | {shown} |")
    return "\n".join(lines)


def show(cell: dict[str, float | None]) -> str:
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
