"""What a graph must beat (distance), and what brackets it (controls): all from the simulator's truth, none from the predictor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cjepa_dist.causal.attention_graph import pairs
from cjepa_dist.causal.interventional_graph import partners
from cjepa_dist.errors import UserError


def distance_scores(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """1 / distance of centres at the last history frame, (B, S, S), from truth["position"] (B, T, S, 2) in units of the world."""
    position = member(truth, "position", "distance").float()
    here = position[:, history_frames - 1]
    gap = (here[:, :, None] - here[:, None]).norm(dim=-1)
    return pairs(present) / gap.clamp_min(1e-6)


def extrapolated_scores(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """1 / smallest distance of centres over the predicted interval if all went on straight at their last velocity, (B, S, S).

    The velocity is the last step of the history. Walls, entries and earlier collisions are not foreseen: it is a baseline, not a simulator.
    """
    position = member(truth, "position", "extrapolated_distance").float()
    if history_frames < 2:
        raise UserError(
            "graph estimator 'extrapolated_distance' needs a velocity: at least 2 history frames; take 'distance'"
        )
    here, velocity = (
        position[:, history_frames - 1],
        position[:, history_frames - 1] - position[:, history_frames - 2],
    )
    apart, closing = here[:, :, None] - here[:, None], velocity[:, :, None] - velocity[:, None]
    # |apart + t closing| is smallest at t = - apart . closing / |closing|^2, cut to the interval that is predicted.
    when = -(apart * closing).sum(dim=-1) / closing.square().sum(dim=-1).clamp_min(1e-12)
    when = when.clamp(0, position.shape[1] - history_frames)
    gap = (apart + when[..., None] * closing).norm(dim=-1)
    return pairs(present) / gap.clamp_min(1e-6)


def distance_tau(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """Half-way score of the distance graphs, (B, 1, 1): 1 / (half the sample's mean distance between present slots at the last history
    frame).

    Without labels there is no radius; this scale is the scene's own. Set `graph.tau` = 1 / distance (in units of the world) where one is
    known.
    """
    here = member(truth, "position", "distance").float()[:, history_frames - 1]
    both = pairs(present)
    total = ((here[:, :, None] - here[:, None]).norm(dim=-1) * both).sum(dim=(1, 2))
    mean = total / both.sum(dim=(1, 2)).clamp_min(1)
    return 2.0 / mean.clamp_min(1e-6)[:, None, None]


def oracle_scores(truth: Mapping[str, Tensor] | None, present: Tensor) -> Tensor:
    """1 where the simulator has a contact in the window, else 0, (B, S, S): the ceiling of what contacts can tell."""
    return (member(truth, "contact", "oracle") & pairs(present)).float()


def shuffled_scores(
    truth: Mapping[str, Tensor] | None,
    present: Tensor,
    seed: int,
    step: int | Tensor,
    sample: Tensor,
) -> Tensor:
    """The contacts of another sample of the batch, (B, S, S): the right number of edges in the wrong places."""
    contact = member(truth, "contact", "shuffled")
    other = partners(contact.shape[0], seed, step, sample)
    return (contact[other] & pairs(present)).float()


def full_scores(present: Tensor) -> Tensor:
    """Everybody influences everybody, (B, S, S)."""
    return pairs(present).float()


def empty_scores(present: Tensor) -> Tensor:
    """Nobody influences anybody, (B, S, S)."""
    return torch.zeros(pairs(present).shape, device=present.device)


def member(truth: Mapping[str, Tensor] | None, name: str, estimator: str) -> Tensor:
    """truth[name]. Raises UserError where the data has no truth."""
    if truth is None or name not in truth:
        raise UserError(
            f"graph estimator {estimator!r} needs the simulator's truth ({name}): simulate the data, or choose interventional or attention"
        )
    return truth[name]
