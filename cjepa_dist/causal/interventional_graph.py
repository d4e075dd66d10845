"""Graphs from interventions: what changes for slot i when slot j is removed or replaced.

    history ──┬── as it is ──────┐                    ┌── z
              ├── do(slot 0) ────┤  ONE forward of    ├── z | do(0)
              ├── ...            ├─ (S + 1) B windows ┤   ...
              └── do(slot S-1) ──┘                    └── z | do(S-1)
    ──> sum_d (change of z_id)^2 / (2 sigma_d^2), mean over future frames ──> (B, S, S)

The score is the Kullback-Leibler divergence, in nats, between two Gaussians with the residual
variance of the predictor: the evidence that one observation of slot i gives that j was replaced.
CTT, axiom 2: a causal neighbour is a slot whose removal changes the prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import present_pairs
from cjepa_dist.config.schema import INTERVENTIONS
from cjepa_dist.models.dropout import without_dropout
from cjepa_dist.runtime.random import uniform

# Streams of `runtime.random.uniform`: every purpose has its own number.
STREAM_OTHER_SAMPLE, STREAM_REPLACEMENT = 101, 102


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
    `intervention`: `hide` masks the history of slot j (its first frame stays visible, so this is
    weaker than removal); `empty` replaces it by the empty slot; `swap` replaces it by a present
    slot of another window of the batch (this draw depends on the batch, unlike all others).
    """
    batch, frames, slots, dim = history.shape
    device = history.device
    eye = torch.eye(slots, dtype=torch.bool, device=device)
    # (S + 1, S): world 0 is the factual one
    done = torch.cat([torch.zeros(1, slots, dtype=torch.bool, device=device), eye])
    hidden = torch.zeros(slots + 1, batch, slots, dtype=torch.bool, device=device)
    worlds = history.expand(slots + 1, batch, frames, slots, dim)
    if intervention == "hide":
        hidden = done[:, None, :].expand(slots + 1, batch, slots)
    elif intervention == "empty":
        worlds = torch.where(done[:, None, None, :, None], empty.to(history), history)
    elif intervention == "swap":
        others = draw_replacement_slots(history, present, seed, step, sample)
        worlds = torch.where(done[:, None, None, :, None], others, history)
    else:
        raise ValueError(f"intervention {intervention!r}: one of {', '.join(INTERVENTIONS)}")
    with without_dropout(predictor):
        z = predictor(
            worlds.reshape(-1, frames, slots, dim), hidden.reshape(-1, slots), future_only=True
        )
    future = z.float().reshape(slots + 1, batch, -1, slots, dim)
    change = (future[1:] - future[:1]).square() / (2 * sigma2.float())
    nats = change.sum(dim=-1).mean(dim=2)  # (do j, B, i)
    return nats.permute(1, 2, 0) * present_pairs(present)


def draw_replacement_slots(
    history: Tensor, present: Tensor, seed: int, step: int | Tensor, sample: Tensor
) -> Tensor:
    """For each slot of each window a present slot of another window, (B, T_h, S, D)."""
    batch, frames, slots, dim = history.shape
    if batch < 2:
        raise ValueError(
            "intervention 'swap' uses slots of another window: it needs a batch of at least 2"
        )
    other = draw_other_samples(batch, seed, step, sample)
    # The argmax of one uniform number a candidate draws one of them uniformly. Present candidates
    # have 1 added, so they come before absent ones.
    draw = uniform(seed, step, sample, slots * slots, STREAM_REPLACEMENT)
    draw = draw.reshape(batch, slots, slots) + present[other][:, None, :]
    chosen = draw.argmax(dim=-1)[:, None, :, None].expand(batch, frames, slots, dim)
    return history[other].gather(2, chosen)


def draw_other_samples(batch: int, seed: int, step: int | Tensor, sample: Tensor) -> Tensor:
    """Indices (B,) of another sample of the batch; the sample itself only in a batch of one."""
    draw = uniform(seed, step, sample, 1, STREAM_OTHER_SAMPLE)[:, 0]
    offset = 1 + (draw * (batch - 1)).floor().long().clamp_max(max(batch - 2, 0))
    return (torch.arange(batch, device=sample.device) + offset) % batch


def residual_nats(z_future: Tensor, target: Tensor, sigma2: Tensor) -> Tensor:
    """The predictor's error in nats, as the scores: sum_d r_d^2 / (2 sigma_d^2), (B, S).

    Mean over future frames; `z_future`, `target` (B, T_p, S, D). The caller tracks its median over
    present slots as `GraphContext.tau`: a change that is smaller than the error of the predictor is
    no edge. This needs no labels. Calibration on empty slots would fail: empty in place of empty
    changes nothing.
    """
    error = (z_future.float() - target.float()).square() / (2 * sigma2.float())
    return error.sum(dim=-1).mean(dim=1)
