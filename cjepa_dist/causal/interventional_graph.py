"""Graphs from interventions: what changes for slot i when slot j is removed or replaced.

    history ──┬── as it is ──────────────┐                    ┌── z
              ├── do(a present slot) ────┤  ONE forward of    ├── z | do(j)
              ├── ...                    ├─  all worlds       ┤   ...
              └── do(another one) ───────┘                    └── z | do(j)
    ──> sum_d (change of z_id)^2 / (2 sigma_d^2), mean over future frames ──> (B, S, S)

The score is in units of the predictor's residual variance, dimension by dimension. It would be a
Kullback-Leibler divergence, in nats, only if residuals were Gaussian and their dimensions
uncorrelated; those of slots are correlated, so it ranks pairs and is no amount of information.
CTT, axiom 2: a causal neighbour is a slot whose removal changes the prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import present_pairs, present_rows
from cjepa_dist.causal.interventions import World, draw_replacement_slots, intervene, stack
from cjepa_dist.models.dropout import without_dropout


@torch.no_grad()
def interventional_scores(
    predictor: nn.Module,
    history: Tensor,
    present: Tensor,
    *,
    intervention: str,
    sigma2: Tensor,
    empty: Tensor,
    seed: int,
    step: int | Tensor,
    sample: Tensor,
) -> Tensor:
    """Nats by which do(j) changes the prediction of i, (B, S, S) float32 at [b, i, j].

    0 where i and j are not two present slots. `history` (B, T_h, S, D), `present` (B, S) bool,
    `sigma2` (D,) residual variance, `empty` (D,) the empty slot, `sample` (B,) global indices.
    `intervention`: a way of `interventions.py`.
    """
    batch, slots = present.shape
    factual, changed, window, slot = predict_without_each(
        predictor,
        history,
        present,
        intervention=intervention,
        empty=empty,
        seed=seed,
        step=step,
        sample=sample,
    )
    change = (changed - factual[window]).square() / (2 * sigma2.float())  # (P, T_p, S, D)
    scores = change.new_zeros(batch, slots, slots)
    scores[window, :, slot] = change.sum(dim=-1).mean(dim=1)
    return scores * present_pairs(present)


@torch.no_grad()
def predict_without_each(
    predictor: nn.Module,
    history: Tensor,
    present: Tensor,
    *,
    intervention: str,
    empty: Tensor,
    seed: int,
    step: int | Tensor,
    sample: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The predictions with everybody, and without each of the P present slots, in one forward.

    (B, T_p, S, D) and (P, T_p, S, D) float32, then for each of the P the window and the slot that
    was taken out, (P,) int64. Arguments as in `interventional_scores`.
    """
    window, slot = present_rows(present)
    done = torch.arange(present.shape[1], device=history.device) == slot[:, None]  # (P, S)
    others = None
    if intervention == "swap":
        others = draw_replacement_slots(history, present, seed, step, sample)[window]
    without = intervene(
        history[window],
        torch.zeros_like(done),
        done,
        intervention,
        empty=empty,
        replacement=others,
    )
    with without_dropout(predictor):
        everybody = World(history, torch.zeros_like(present))
        z = stack([everybody, without]).predict(predictor, future_only=True)
    factual, changed = z.float().split([len(history), len(window)])
    return factual, changed, window, slot


def scaled_error(z_future: Tensor, target: Tensor, sigma2: Tensor) -> Tensor:
    """The predictor's error in the unit of the scores: sum_d r_d^2 / (2 sigma_d^2), (B, S).

    Mean over future frames; `z_future`, `target` (B, T_p, S, D). Its median over
    present slots is `GraphContext.tau`: a change that is smaller than the error of the predictor is
    no edge. This needs no labels. Calibration on empty slots would fail: empty in place of empty
    changes nothing.
    """
    error = (z_future.float() - target.float()).square() / (2 * sigma2.float())
    return error.sum(dim=-1).mean(dim=1)
