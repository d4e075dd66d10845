"""Graphs read from interventions: what changes for i when j is taken away or replaced.

    history ──┬── as it is ──────────┐                    ┌── z
              ├── do(slot 0) ────────┤  ONE forward of    ├── z | do(0)
              ├── ...                ├─ (S + 1) B windows ┤   ...       ──> sum_d (change of z_id)^2 / (2 sigma_d^2), mean over future
              frames └── do(slot S-1) ──────┘                    └── z | do(S-1)

The score is the Kullback-Leibler divergence, in nats, between two Gaussians of the predictor's own residual variance: how many nats of
evidence one observation of slot i would give that j was replaced (CTT, axiom 2: a causal neighbour is one whose removal changes the
prediction).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import pairs
from cjepa_dist.config.schema import INTERVENTIONS
from cjepa_dist.runtime.random import uniform

# Streams of `masking.uniform`, apart from those of the masks: the same sample draws independent numbers for each purpose.
STREAM_PARTNER, STREAM_DONOR = 101, 102


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, then exactly the mode that each submodule had. Gradients are unaffected, nothing is read from the
    device.

    Two passes that are compared must differ in the intervention only; with dropout their difference has a floor that is not causal.
    """
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


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
    """Nats by which do(j) changes the prediction of i, (B, S, S) float32 at [b, i, j]; 0 for pairs that are not two present slots.

    `history` (B, T_h, S, D), `present` (B, S) bool, `sigma2` (D,) residual variance, `empty` (D,) the empty slot, `sample` (B,) global
    indices. intervention: `hide` masks slot j's history (its first frame stays visible, so this is weaker than removal); `empty` puts the
    empty slot in its place; `swap` puts a present slot of another window of the batch there (which one depends on the batch, unlike every
    other draw).
    """
    batch, frames, slots, dim = history.shape
    device = history.device
    eye = torch.eye(slots, dtype=torch.bool, device=device)
    done = torch.cat(
        [torch.zeros(1, slots, dtype=torch.bool, device=device), eye]
    )  # (S+1, S): world 0 is the factual one
    hidden = torch.zeros(slots + 1, batch, slots, dtype=torch.bool, device=device)
    worlds = history.expand(slots + 1, batch, frames, slots, dim)
    if intervention == "hide":
        hidden = done[:, None, :].expand(slots + 1, batch, slots)
    elif intervention == "empty":
        worlds = torch.where(done[:, None, None, :, None], empty.to(history), history)
    elif intervention == "swap":
        worlds = torch.where(
            done[:, None, None, :, None], donors(history, present, seed, step, sample), history
        )
    else:
        raise ValueError(f"intervention {intervention!r}: one of {', '.join(INTERVENTIONS)}")
    with without_dropout(predictor):
        z = predictor(
            worlds.reshape(-1, frames, slots, dim), hidden.reshape(-1, slots), future_only=True
        )
    future = z.float().reshape(slots + 1, batch, -1, slots, dim)
    nats = (
        ((future[1:] - future[:1]).square() / (2 * sigma2.float())).sum(dim=-1).mean(dim=2)
    )  # (do j, B, i)
    return nats.permute(1, 2, 0) * pairs(present)


def donors(
    history: Tensor, present: Tensor, seed: int, step: int | Tensor, sample: Tensor
) -> Tensor:
    """For each slot of each window a present slot of another window, (B, T_h, S, D)."""
    batch, frames, slots, dim = history.shape
    if batch < 2:
        raise ValueError(
            "intervention 'swap' takes slots from another window: it needs a batch of at least 2"
        )
    partner = partners(batch, seed, step, sample)
    # Argmax of one uniform number per candidate draws one candidate uniformly; present candidates stand above all absent ones.
    keys = (
        uniform(seed, step, sample, slots * slots, STREAM_DONOR).reshape(batch, slots, slots)
        + present[partner][:, None, :]
    )
    chosen = keys.argmax(dim=-1)[:, None, :, None].expand(batch, frames, slots, dim)
    return history[partner].gather(2, chosen)


def partners(batch: int, seed: int, step: int | Tensor, sample: Tensor) -> Tensor:
    """(B,) indices of another sample of the batch, never the sample itself (but itself in a batch of one)."""
    draw = uniform(seed, step, sample, 1, STREAM_PARTNER)[:, 0]
    offset = 1 + (draw * (batch - 1)).floor().long().clamp_max(max(batch - 2, 0))
    return (torch.arange(batch, device=sample.device) + offset) % batch


def residual(z_future: Tensor, target: Tensor, sigma2: Tensor) -> Tensor:
    """The predictor's own error in the unit of the scores (nats), (B, S): sum_d r_d^2 / (2 sigma_d^2), mean over future frames.

    `z_future`, `target` (B, T_p, S, D). The caller tracks its median over present slots as `GraphContext.tau`: a change that is smaller
    than what the predictor does not know anyway is no edge. Needs no labels; calibrating on empty slots fails (empty for empty changes
    nothing).
    """
    return (
        ((z_future.float() - target.float()).square() / (2 * sigma2.float()))
        .sum(dim=-1)
        .mean(dim=1)
    )
