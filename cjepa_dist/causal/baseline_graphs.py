"""Baseline graphs from the simulator's ground truth: distance, and controls that bound a graph.

Distance is what an estimator should beat. `oracle` is the upper bound, `shuffled` has as many edges
in the wrong places, `full` and `empty` have all and none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cjepa_dist.causal.attention_graph import present_pairs
from cjepa_dist.causal.interventions import draw_other_samples
from cjepa_dist.errors import UserError


def distance_scores(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """1 / distance of centres at the last history frame, (B, S, S).

    From truth["position"] (B, T, S, 2) in units of the world.
    """
    position = require_truth(truth, "position", "distance").float()
    last = position[:, history_frames - 1]
    distance = (last[:, :, None] - last[:, None]).norm(dim=-1)
    return present_pairs(present) / distance.clamp_min(1e-6)


def extrapolated_scores(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """1 / smallest distance of centres in the predicted interval at constant velocity, (B, S, S).

    The velocity is the last step of the history. Walls, entries and earlier collisions are ignored:
    it is a baseline, not a simulator.
    """
    position = require_truth(truth, "position", "extrapolated_distance").float()
    if history_frames < 2:
        raise UserError(
            "graph estimator 'extrapolated_distance' needs a velocity: at least 2 history frames;"
            " take 'distance'"
        )
    last = position[:, history_frames - 1]
    velocity = last - position[:, history_frames - 2]
    offset, speed = last[:, :, None] - last[:, None], velocity[:, :, None] - velocity[:, None]
    # |offset + t speed| is smallest at t = - offset . speed / |speed|^2, cut to predicted frames.
    time = -(offset * speed).sum(dim=-1) / speed.square().sum(dim=-1).clamp_min(1e-12)
    time = time.clamp(0, position.shape[1] - history_frames)
    distance = (offset + time[..., None] * speed).norm(dim=-1)
    return present_pairs(present) / distance.clamp_min(1e-6)


def distance_tau(
    truth: Mapping[str, Tensor] | None, history_frames: int, present: Tensor
) -> Tensor:
    """The score at which A = 0.5 in the distance graphs, (B, 1, 1): 2 / (mean distance).

    The mean is over pairs of present slots at the last history frame: a scale of the scene itself,
    since no radius is known without labels. Where one is known, set `graph.tau` = 1 / distance (in
    units of the world).
    """
    last = require_truth(truth, "position", "distance").float()[:, history_frames - 1]
    pairs = present_pairs(present)
    total = ((last[:, :, None] - last[:, None]).norm(dim=-1) * pairs).sum(dim=(1, 2))
    mean = total / pairs.sum(dim=(1, 2)).clamp_min(1)
    return 2.0 / mean.clamp_min(1e-6)[:, None, None]


def oracle_scores(truth: Mapping[str, Tensor] | None, present: Tensor) -> Tensor:
    """1 where the simulator has a contact in the window, else 0, (B, S, S): the upper bound."""
    return (require_truth(truth, "contact", "oracle") & present_pairs(present)).float()


def shuffled_scores(
    truth: Mapping[str, Tensor] | None,
    present: Tensor,
    seed: int,
    step: int | Tensor,
    sample: Tensor,
) -> Tensor:
    """The contacts of another sample of the batch, (B, S, S): edges in the wrong places."""
    contact = require_truth(truth, "contact", "shuffled")
    other = draw_other_samples(contact.shape[0], seed, step, sample)
    return (contact[other] & present_pairs(present)).float()


def full_scores(present: Tensor) -> Tensor:
    """Every present slot influences every other, (B, S, S)."""
    return present_pairs(present).float()


def empty_scores(present: Tensor) -> Tensor:
    """No slot influences another, (B, S, S)."""
    return torch.zeros(present_pairs(present).shape, device=present.device)


def require_truth(truth: Mapping[str, Tensor] | None, name: str, estimator: str) -> Tensor:
    """truth[name]. Raises UserError if the data has no such ground truth."""
    if truth is None or name not in truth:
        raise UserError(
            f"graph estimator {estimator!r} needs the simulator's truth ({name}): simulate the"
            " data, or choose interventional or attention"
        )
    return truth[name]
