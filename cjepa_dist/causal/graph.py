"""Who influences whom in a window: one interface, estimators by name.

    estimate(config, predictor, history, present, context=, truth=)
        └─ ESTIMATORS[config.estimator] ──> raw scores (B, S, S), tau ──> A = sigmoid((log raw - log tau) / 0.25) ──> Graph

`[b, i, j]` is the influence of slot j on slot i. An edge is A > 0.5, that is raw > tau. Slots without an object have no edges; A_ii = 1.
To add an estimator: a function (Request) -> (scores, tau) in ESTIMATORS, and its name in `config.GRAPH_ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.causal import attention_graph, baseline_graphs
from cjepa_dist.causal.attention_graph import pairs
from cjepa_dist.causal.gradient_graph import gradient_scores
from cjepa_dist.causal.interventional_graph import interventional_scores, residual, without_dropout
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.errors import UserError

__all__ = ["ESTIMATORS", "Graph", "GraphContext", "Request", "calibrate", "estimate", "residual"]

SHARPNESS = 0.25  # in log units: a score of 1.28 tau is A = 0.73, of 0.78 tau is 0.27
CERTAIN = (
    1e-3  # tau of the controls, whose scores are 0 or 1: A is then 0 or 1 to float32's last bit
)


@dataclass(frozen=True)
class GraphContext:
    """What an estimator needs beside the window: running statistics of the predictor, and the keys of random draws."""

    sigma2: Tensor  # (D,) residual variance of the predictor's one-step error, per dimension
    tau: Tensor  # () the predictor's median one-step residual, nats: see `intervention.residual`
    empty: Tensor  # (D,) the slot that holds nothing
    seed: int
    step: int | Tensor
    sample: Tensor  # (B,) int64 global sample indices


@dataclass(frozen=True)
class Graph:
    """A graph for each sample."""

    adjacency: Tensor  # (B, S, S) in [0, 1], A_ii = 1
    scores: Tensor  # (B, S, S) raw, higher = more influence; 0 on the diagonal and for absent slots
    losses: dict[str, Tensor] = field(default_factory=dict)  # extra losses of estimators that learn


@dataclass(frozen=True)
class Request:
    """The arguments of `estimate`, as an estimator sees them."""

    config: GraphConfig
    predictor: nn.Module
    history: Tensor
    present: Tensor
    context: GraphContext
    truth: Mapping[str, Tensor] | None

    def maps(self, *, last: bool = False) -> list[Tensor]:
        """Attention of all layers, or of the last, with nothing hidden, as in inference."""
        nothing = torch.zeros_like(self.present)
        with without_dropout(self.predictor):
            return attention_graph.attention_maps(self.predictor, self.history, nothing, last=last)

    def chosen(self, tau: Tensor) -> Tensor:
        """The user's tau where one is set, else the estimator's."""
        return torch.full_like(tau, self.config.tau) if self.config.tau > 0 else tau


Scores = tuple[Tensor, Tensor]


def by_published(r: Request) -> Scores:
    """The released graph: last layer, first future frame, mean over key frames AND batch. `config.threshold` takes the place of tau."""
    adjacency = attention_graph.published_adjacency(
        r.maps(last=True)[-1], r.history.shape[1], r.history.shape[2]
    )
    mean = adjacency.mean(dim=0, keepdim=True).expand_as(adjacency)
    return mean * pairs(r.present), torch.full((), r.config.threshold, device=mean.device)


def by_attention(r: Request) -> Scores:
    """Per sample, summed over key frames, no diagonal, rows normalised; tau = 2 / (number of present slots), see `attention.row_tau`."""
    scores = attention_graph.attention_scores(
        r.maps(last=True)[-1], r.history.shape[1], r.history.shape[2], r.present
    )
    return scores, r.chosen(attention_graph.row_tau(scores, r.present))


def by_rollout(r: Request) -> Scores:
    """Attention through all layers; tau = 2 / (number of present slots) of what the row gives to others, see `attention.row_tau`."""
    scores = attention_graph.rollout_scores(
        r.maps(), r.history.shape[1], r.history.shape[2], r.present
    )
    return scores, r.chosen(attention_graph.row_tau(scores, r.present))


def in_nats(measure: Callable[..., Tensor], r: Request, **how: Any) -> Scores:
    """How far the prediction changes, in nats; tau = the predictor's median one-step residual in nats."""
    c = r.context
    scores = measure(
        r.predictor, r.history, r.present, sigma2=c.sigma2, empty=c.empty, seed=c.seed, step=c.step, sample=c.sample, **how
    )  # fmt: skip
    return scores, r.chosen(torch.as_tensor(c.tau, device=scores.device))


def by_gradient(r: Request) -> Scores:
    """To first order in j's history."""
    return in_nats(gradient_scores, r, projections=r.config.projections)


def by_intervention(r: Request) -> Scores:
    """By do(j)."""
    return in_nats(interventional_scores, r, intervention=r.config.intervention)


def by_distance(r: Request) -> Scores:
    """1 / distance at the last history frame; tau from the scene's mean distance."""
    frames = r.history.shape[1]
    return baseline_graphs.distance_scores(r.truth, frames, r.present), r.chosen(
        baseline_graphs.distance_tau(r.truth, frames, r.present)
    )


def by_extrapolation(r: Request) -> Scores:
    """1 / smallest extrapolated distance in the predicted interval; tau from the scene's mean distance."""
    frames = r.history.shape[1]
    return baseline_graphs.extrapolated_scores(r.truth, frames, r.present), r.chosen(
        baseline_graphs.distance_tau(r.truth, frames, r.present)
    )


def certain(scores: Tensor) -> Scores:
    return scores, torch.full((), CERTAIN, device=scores.device)


ESTIMATORS: dict[str, Callable[[Request], Scores]] = {
    "published": by_published,
    "attention": by_attention,
    "attention_rollout": by_rollout,
    "gradient": by_gradient,
    "interventional": by_intervention,
    "distance": by_distance,
    "extrapolated_distance": by_extrapolation,
    "oracle": lambda r: certain(baseline_graphs.oracle_scores(r.truth, r.present)),
    "shuffled": lambda r: certain(
        baseline_graphs.shuffled_scores(
            r.truth, r.present, r.context.seed, r.context.step, r.context.sample
        )
    ),
    "full": lambda r: certain(baseline_graphs.full_scores(r.present)),
    "empty": lambda r: certain(baseline_graphs.empty_scores(r.present)),
}


@torch.no_grad()
def estimate(
    config: GraphConfig,
    predictor: nn.Module,
    history: Tensor,
    present: Tensor,
    *,
    context: GraphContext,
    truth: Mapping[str, Tensor] | None = None,
) -> Graph:
    """The graph of each window: `history` (B, T_h, S, D), `present` (B, S) bool, `truth` the source's batch where the data has truth.

    Dropout is off, no gradient flows, nothing is read back from the device, no loop over slots. Raises UserError for an unknown name or
    missing truth.
    """
    if config.estimator not in ESTIMATORS:
        raise UserError(
            f"graph estimator {config.estimator!r}: must be one of {', '.join(ESTIMATORS)}"
        )
    scores, tau = ESTIMATORS[config.estimator](
        Request(config, predictor, history, present, context, truth)
    )
    return Graph(calibrate(scores, tau, present), scores)


def calibrate(scores: Tensor, tau: Tensor, present: Tensor) -> Tensor:
    """A = sigmoid((log raw - log tau) / 0.25), (B, S, S); 1 on the diagonal, 0 between slots that are not both present.

    `tau` is broadcast over `scores`: one number, or one a sample or row.
    """
    log = scores.clamp_min(1e-20).log() - tau.float().clamp_min(1e-6).log()
    eye = torch.eye(present.shape[-1], dtype=scores.dtype, device=scores.device)
    return torch.sigmoid(log / SHARPNESS) * pairs(present) + eye
