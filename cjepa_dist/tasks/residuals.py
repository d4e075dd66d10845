"""The predictor's one-step residuals: the unit of the causal terms and the threshold of graphs.

held-out windows, nothing hidden, evaluation mode, the weights that are evaluated ──> residuals
    mean square of each dimension  sigma2 (D,)   the unit of errors and scores
    median of a slot               tau ()        the threshold of graph estimators, in that unit

One definition for training, imports and evaluations: both are stored with the weights. Residuals of
training passes would not do: with hidden slots and dropout they were three times as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal.interventional_graph import scaled_error
from cjepa_dist.data.dataset import Batch, Dataset
from cjepa_dist.data.windows import to_device
from cjepa_dist.models.dropout import without_dropout
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.collectives import gather_rows, rank, world_size

WINDOWS, BATCH_SIZE = 256, 64
MEASUREMENTS = 20  # a run, at even distances; see `is_due`


@dataclass(frozen=True)
class Residuals:
    """What was measured; on the CPU."""

    sigma2: Tensor  # (D,)
    tau: Tensor  # ()


def is_due(done: int, steps: int) -> bool:
    """Whether residuals are measured after `done` of `steps` steps.

    MEASUREMENTS times a run, at its end, and after 0, 1, 2, 4, 8 ... steps, since they shrink fast
    at first. It depends on nothing that may change when a run is resumed.
    """
    power_of_two = done & (done - 1) == 0
    return power_of_two or done % math.ceil(steps / MEASUREMENTS) == 0 or done == steps


@torch.no_grad()
def measure_residuals(
    predictor: SlotPredictor,
    dataset: Dataset,
    ids: np.ndarray,
    *,
    windows: int = WINDOWS,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Residuals | None:
    """Measure at most `windows` of the samples `ids`, spread evenly; all ranks call it.

    None where no slot holds an object, or where a prediction is not finite.
    """
    chosen = ids[np.linspace(0, len(ids) - 1, min(windows, len(ids))).astype(np.int64)]
    mine = chosen[rank() :: world_size()]
    device = predictor.mask_token.device
    frames = predictor.config.history_frames, predictor.config.pred_frames
    rows = [torch.zeros(0, frames[1], predictor.config.slot_dim)]
    with without_dropout(predictor):
        for begin in range(0, len(mine), BATCH_SIZE):
            part = mine[begin : begin + BATCH_SIZE]
            batch = to_device(dataset.get_batch(part, part.astype(np.int64)), device)
            with autocast():
                prediction = predictor.predict(batch["slots"][:, : frames[0]])
            rows.append(seen_residuals(prediction, batch, *frames).cpu())
    return summarize(gather_rows(torch.cat(rows)))


def seen_residuals(prediction: Tensor, batch: Batch, history: int, future: int) -> Tensor:
    """(N, T_p, D) residuals of the slots that hold an object from the last history frame on.

    `prediction` (B, T_p, S, D); of the batch `slots` and `present`, see `WorldModelTask.forward`.
    """
    error = prediction.float() - batch["slots"][:, history : history + future].float()
    seen = batch["present"][:, history - 1 : history + future].all(dim=1)
    return error.transpose(1, 2)[seen]


def summarize(rows: Tensor) -> Residuals | None:
    """sigma2 and tau of residuals (N, T_p, D)."""
    if not len(rows) or not rows.isfinite().all():
        return None
    sigma2 = rows.double().square().mean(dim=(0, 1)).float().clamp(min=1e-8)
    of_slot = scaled_error(rows[:, :, None], torch.zeros(()), sigma2)
    return Residuals(sigma2, of_slot.median())
