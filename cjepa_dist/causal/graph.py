"""Who influences whom in a window: one interface, graph estimators by name.

    estimate_graph(config, predictor, history, present, context=, truth=)
      └─ ESTIMATORS[config.estimator] ──> raw scores (B, S, S), tau
           └─> A = sigmoid((log raw - log tau) / 0.25) ──> Graph

[b, i, j] is the influence of slot j on slot i. An edge is A > 0.5, that is raw > tau. Slots without
an object have no edges; A_ii = 1.

To add an estimator, write a function EstimatorInput -> (scores, tau) with `register_estimator` in a
module of your own, and name that module in the config: plugins=[my_module]
ctt.graph.estimator=my_name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.causal import attention_graph, baseline_graphs
from cjepa_dist.causal.attention_graph import present_pairs
from cjepa_dist.causal.gradient_graph import gradient_scores
from cjepa_dist.causal.interventional_graph import interventional_scores
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, GraphConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.dropout import without_dropout

SHARPNESS = 0.25  # in log units: a score of 1.28 tau is A = 0.73, one of 0.78 tau is A = 0.27
BINARY_TAU = 1e-3  # for scores that are 0 or 1: A is then 0 or 1 to the last bit of float32


@dataclass(frozen=True)
class GraphContext:
    """What an estimator needs besides the window: residual statistics and keys of random draws."""

    sigma2: Tensor  # (D,) residual variance of the predictor's one-step error, per dimension
    tau: Tensor  # () the predictor's median one-step residual: see `scaled_error`
    empty: Tensor  # (D,) the slot that holds nothing
    seed: int
    step: int | Tensor
    sample: Tensor  # (B,) int64 global sample indices


@dataclass(frozen=True)
class Graph:
    """A graph for each sample."""

    adjacency: Tensor  # (B, S, S) in [0, 1], A_ii = 1
    scores: Tensor  # (B, S, S) raw, higher = more influence; 0 on the diagonal and for absent slots


@dataclass(frozen=True)
class EstimatorInput:
    """The arguments of `estimate_graph`, as an estimator gets them."""

    config: GraphConfig
    predictor: nn.Module
    history: Tensor  # (B, T_h, S, D)
    present: Tensor  # (B, S) bool
    context: GraphContext
    truth: Mapping[str, Tensor] | None

    def attention_maps(self, *, last_only: bool = False) -> list[Tensor]:
        """Attention weights of all layers, or of the last, with no slot hidden and no dropout."""
        nothing = torch.zeros_like(self.present)
        with without_dropout(self.predictor):
            return attention_graph.attention_maps(
                self.predictor, self.history, nothing, last_only=last_only
            )

    def tau_or(self, default: Tensor) -> Tensor:
        """The tau of the config where one is set, else the default of the estimator."""
        return torch.full_like(default, self.config.tau) if self.config.tau > 0 else default


ScoresAndTau = tuple[Tensor, Tensor]  # (B, S, S) raw scores; tau, broadcast over them
EstimatorFunction = Callable[[EstimatorInput], ScoresAndTau]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator."""

    function: EstimatorFunction
    needs_truth: bool  # reads the simulator's ground truth, which the data must then have


ESTIMATORS: dict[str, Estimator] = {}


def register_estimator(
    name: str, needs_truth: bool = False
) -> Callable[[EstimatorFunction], EstimatorFunction]:
    """Decorator: adds a graph estimator, and its name to the choices of `graph.estimator`.

    Raises UserError if the name is taken.
    """

    def register(function: EstimatorFunction) -> EstimatorFunction:
        if name in ESTIMATORS:
            raise UserError(f"there is a graph estimator {name!r} already: choose another name")
        ESTIMATORS[name] = Estimator(function, needs_truth)
        if name not in GRAPH_ESTIMATORS:
            GRAPH_ESTIMATORS.append(name)
        return function

    return register


@register_estimator("published")
def estimate_published(inputs: EstimatorInput) -> ScoresAndTau:
    """The released graph: last layer, first future frame, mean over key frames AND batch.

    `config.threshold` is used in place of tau.
    """
    frames, slots = inputs.history.shape[1], inputs.history.shape[2]
    last = inputs.attention_maps(last_only=True)[-1]
    adjacency = attention_graph.published_adjacency(last, frames, slots)
    mean = adjacency.mean(dim=0, keepdim=True).expand_as(adjacency)
    threshold = torch.full((), inputs.config.threshold, device=mean.device)
    return mean * present_pairs(inputs.present), threshold


@register_estimator("attention")
def estimate_attention(inputs: EstimatorInput) -> ScoresAndTau:
    """Attention of the last layer, per sample; tau = 2 / (number of present slots)."""
    frames, slots = inputs.history.shape[1], inputs.history.shape[2]
    last = inputs.attention_maps(last_only=True)[-1]
    scores = attention_graph.attention_scores(last, frames, slots, inputs.present)
    return scores, inputs.tau_or(attention_graph.row_tau(scores, inputs.present))


@register_estimator("attention_rollout")
def estimate_attention_rollout(inputs: EstimatorInput) -> ScoresAndTau:
    """Attention through all layers; tau = 2 / (number of present slots) of the row's sum."""
    frames, slots = inputs.history.shape[1], inputs.history.shape[2]
    maps = inputs.attention_maps()
    scores = attention_graph.rollout_scores(maps, frames, slots, inputs.present)
    return scores, inputs.tau_or(attention_graph.row_tau(scores, inputs.present))


def change_scores(
    measure: Callable[..., Tensor], inputs: EstimatorInput, **options: Any
) -> ScoresAndTau:
    """Change of the prediction; tau = the predictor's median one-step residual, in one unit."""
    context = inputs.context
    scores = measure(
        inputs.predictor,
        inputs.history,
        inputs.present,
        sigma2=context.sigma2,
        empty=context.empty,
        seed=context.seed,
        step=context.step,
        sample=context.sample,
        **options,
    )
    return scores, inputs.tau_or(torch.as_tensor(context.tau, device=scores.device))


@register_estimator("gradient")
def estimate_gradient(inputs: EstimatorInput) -> ScoresAndTau:
    """Change to first order in j's history."""
    return change_scores(gradient_scores, inputs, projections=inputs.config.projections)


@register_estimator("interventional")
def estimate_interventional(inputs: EstimatorInput) -> ScoresAndTau:
    """Change by do(j)."""
    return change_scores(interventional_scores, inputs, intervention=inputs.config.intervention)


@register_estimator("distance", needs_truth=True)
def estimate_distance(inputs: EstimatorInput) -> ScoresAndTau:
    """1 / distance at the last history frame; tau from the mean distance in the scene."""
    arguments = inputs.truth, inputs.history.shape[1], inputs.present
    tau = baseline_graphs.distance_tau(*arguments)
    return baseline_graphs.distance_scores(*arguments), inputs.tau_or(tau)


@register_estimator("extrapolated_distance", needs_truth=True)
def estimate_extrapolated_distance(inputs: EstimatorInput) -> ScoresAndTau:
    """1 / smallest distance at constant velocity; tau from the mean distance in the scene."""
    arguments = inputs.truth, inputs.history.shape[1], inputs.present
    scores = baseline_graphs.extrapolated_scores(*arguments)
    return scores, inputs.tau_or(baseline_graphs.distance_tau(*arguments))


def binary_scores(scores: Tensor) -> ScoresAndTau:
    """Scores that are 0 or 1, with a tau that makes A the same."""
    return scores, torch.full((), BINARY_TAU, device=scores.device)


@register_estimator("oracle", needs_truth=True)
def estimate_oracle(inputs: EstimatorInput) -> ScoresAndTau:
    """The contacts of the simulator."""
    return binary_scores(baseline_graphs.oracle_scores(inputs.truth, inputs.present))


@register_estimator("shuffled", needs_truth=True)
def estimate_shuffled(inputs: EstimatorInput) -> ScoresAndTau:
    """The contacts of another sample of the batch."""
    context = inputs.context
    scores = baseline_graphs.shuffled_scores(
        inputs.truth, inputs.present, context.seed, context.step, context.sample
    )
    return binary_scores(scores)


@register_estimator("full")
def estimate_full(inputs: EstimatorInput) -> ScoresAndTau:
    """Every pair of present slots is an edge."""
    return binary_scores(baseline_graphs.full_scores(inputs.present))


@register_estimator("empty")
def estimate_empty(inputs: EstimatorInput) -> ScoresAndTau:
    """No edges."""
    return binary_scores(baseline_graphs.empty_scores(inputs.present))


@torch.no_grad()
def estimate_graph(
    config: GraphConfig,
    predictor: nn.Module,
    history: Tensor,
    present: Tensor,
    *,
    context: GraphContext,
    truth: Mapping[str, Tensor] | None = None,
) -> Graph:
    """The graph of each window: `history` (B, T_h, S, D), `present` (B, S) bool.

    `truth`: the batch of a data source with ground truth. Dropout is off, no gradient flows,
    nothing is read back from the device, and there is no loop over slots. Raises UserError for an
    unknown name or missing truth.
    """
    if config.estimator not in ESTIMATORS:
        raise UserError(
            f"graph estimator {config.estimator!r}: must be one of {', '.join(ESTIMATORS)}"
        )
    estimator = ESTIMATORS[config.estimator]
    if estimator.needs_truth and truth is None:
        raise UserError(
            f"graph estimator {config.estimator!r} needs the simulator's truth: simulate the data,"
            " or choose interventional or attention"
        )
    inputs = EstimatorInput(config, predictor, history, present, context, truth)
    scores, tau = estimator.function(inputs)
    return Graph(calibrate(scores, tau, present), scores)


def calibrate(scores: Tensor, tau: Tensor, present: Tensor) -> Tensor:
    """A = sigmoid((log raw - log tau) / 0.25), (B, S, S).

    1 on the diagonal, 0 between slots that are not both present. `tau` is broadcast over `scores`:
    one number, or one a sample or row.
    """
    log = scores.clamp_min(1e-20).log() - tau.float().clamp_min(1e-6).log()
    eye = torch.eye(present.shape[-1], dtype=scores.dtype, device=scores.device)
    return torch.sigmoid(log / SHARPNESS) * present_pairs(present) + eye
