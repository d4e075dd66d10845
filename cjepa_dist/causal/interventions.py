"""What takes a slot out of a history: four ways, for graphs and losses alike.

    hide     the model is told that it does not know the slot; its first frame stays visible
    empty    the slot holds nothing, as where there is no object: what a removal looks like
    swap     the slot holds an object of another window of the batch
    close    no other slot attends to it, in any layer: nothing of it can reach the others

Hiding says "unknown", so even a perfect predictor must change its mean. A true world without an
object that touches nobody is the same for the others: `empty` asks this of the predictor, and
`close` where the data do not say what an empty slot is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cjepa_dist.config.schema import INTERVENTIONS
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import uniform

# Streams of `runtime.random.uniform`: every purpose has its own number.
STREAM_OTHER_SAMPLE, STREAM_REPLACEMENT = 101, 102


@dataclass(frozen=True)
class World:
    """What a predictor gets; worlds of one batch size can be stacked."""

    history: Tensor  # (B, T_h, S, D)
    hidden: Tensor  # (B, S) bool
    closed: Tensor | None = None  # (B, S) bool: attended by nobody; None = none

    def predict(self, predictor: nn.Module, *, future_only: bool = False) -> Tensor:
        """The prediction of all frames, or of the future, see `SlotPredictor.forward`."""
        closed = {} if self.closed is None else {"closed": self.closed}
        z: Tensor = predictor(self.history, self.hidden, future_only=future_only, **closed)
        return z


def stack(worlds: Sequence[World]) -> World:
    """Several worlds as one batch, one after the other."""
    closed = None
    if any(world.closed is not None for world in worlds):
        nobody = [torch.zeros_like(w.hidden) if w.closed is None else w.closed for w in worlds]
        closed = torch.cat(nobody)
    return World(
        torch.cat([w.history for w in worlds]), torch.cat([w.hidden for w in worlds]), closed
    )


def intervene(
    history: Tensor,
    hidden: Tensor,
    removed: Tensor,
    how: str,
    *,
    empty: Tensor | None = None,
    replacement: Tensor | None = None,
) -> World:
    """The world with the slots `removed` taken out.

    `history` (B, T_h, S, D); `hidden`, `removed` (B, S) bool. `empty` (D,) for how = "empty",
    `replacement` (B, T_h, S, D) for "swap". A slot that is replaced is not hidden any more.
    ValueError for another `how`.
    """
    if how == "hide":
        return World(history, hidden | removed)
    if how == "close":
        return World(history, hidden, removed)
    if how == "empty":
        assert empty is not None
        other = empty.to(history)
    elif how == "swap":
        assert replacement is not None
        other = replacement
    else:
        raise ValueError(f"intervention {how!r}: one of {', '.join(INTERVENTIONS)}")
    seen = torch.where(removed[:, None, :, None], other, history)
    return World(seen, hidden & ~removed)


def draw_replacement_slots(
    history: Tensor, present: Tensor, seed: int, step: int | Tensor, sample: Tensor
) -> Tensor:
    """For each slot of each window a present slot of another window, (B, T_h, S, D).

    This draw depends on which windows share a batch, unlike all others. Raises UserError for a
    batch of one.
    """
    batch, frames, slots, dim = history.shape
    if batch < 2:
        raise UserError(
            "intervention 'swap' uses slots of another window: it needs at least 2 windows a"
            " process and pass (loop.global_batch_size, ctt.fraction)"
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
