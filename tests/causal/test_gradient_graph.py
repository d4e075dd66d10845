"""The gradient graph: equal to finite differences, in the unit of the interventional graph.

It is a function of the window and of the keys of its random draws.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.causal.gradient_graph import draw_signs
from cjepa_dist.causal.graph import Graph, GraphContext, estimate_graph
from cjepa_dist.config.schema import GraphConfig, PredictorConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.predictor import SlotPredictor

B, T_H, T_P, S, D, K = 4, 3, 2, 5, 16, 3
CONFIG = GraphConfig(estimator="gradient", projections=K)
PRESENT = torch.ones(B, S, dtype=torch.bool)


def context(sigma2: float | None = None) -> GraphContext:
    generator = torch.Generator().manual_seed(2)
    variance = (
        torch.rand(D, generator=generator) + 0.5 if sigma2 is None else torch.full((D,), sigma2)
    )
    return GraphContext(
        variance, torch.tensor(0.05), torch.zeros(D), 0, 3, torch.arange(50, 50 + B)
    )


def slots() -> Tensor:
    return torch.randn(B, T_H, S, D, generator=torch.Generator().manual_seed(1))


def trained(**options: object) -> SlotPredictor:
    torch.manual_seed(0)
    size = {
        "slots": S,
        "slot_dim": D,
        "history_frames": T_H,
        "pred_frames": T_P,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 32,
        "dropout": 0.3,
    }
    return SlotPredictor(PredictorConfig(**size | options)).train()


def gradient(
    predictor: nn.Module, history: Tensor, c: GraphContext, present: Tensor = PRESENT
) -> Graph:
    return estimate_graph(CONFIG, predictor, history, present, context=c)


class Linear(nn.Module):
    """Slot i's one future frame is the sum of weight[i, j] times slot j's frame `frame`."""

    def __init__(self, weight: Tensor, frame: int) -> None:
        super().__init__()
        self.weight, self.frame = weight, frame

    def forward(self, history: Tensor, hidden: Tensor, *, future_only: bool = False) -> Tensor:
        future = torch.einsum("ij,bjd->bid", self.weight, history[:, self.frame])[:, None]
        return future if future_only else torch.cat([history, future], dim=1)


class Fused(nn.Module):
    """Fused attention over all tokens."""

    def forward(self, history: Tensor, hidden: Tensor, *, future_only: bool = False) -> Tensor:
        x = history.flatten(1, 2)[:, None]
        mixed = F.scaled_dot_product_attention(x, x, x)[:, 0].unflatten(1, (T_H, S))
        return mixed[:, -T_P:] if future_only else torch.cat([history, mixed[:, -T_P:]], dim=1)


@pytest.mark.parametrize("which", ["transformer", "fused"])
def test_equals_finite_differences(which: str) -> None:
    """u . (f(x + eps v) - f(x - eps v)) / (2 eps) for each of j's inputs v, squared and summed."""
    predictor = trained().double().eval() if which == "transformer" else Fused()
    history, c, eps, j = slots().double(), context(), 1e-5, 2
    nothing, keys = torch.zeros(B, S, dtype=torch.bool), (c.seed, c.step, c.sample)
    size2 = (history[:, 1:, j] - c.empty).square().mean(-1)  # (B, T_H - 1)
    expected = torch.zeros(B, S, dtype=torch.float64)
    for t in range(1, T_H):
        for d in range(D):
            move = torch.zeros_like(history)
            move[:, t, j, d] = eps
            with torch.no_grad():
                up, down = (predictor(history + sign * move, nothing)[:, T_H:] for sign in (1, -1))
            slope = (up - down) / (2 * eps) / (2 * T_P * c.sigma2.double()).sqrt()
            projected = (draw_signs(K, slope, *keys) * slope).sum((2, 4))  # (K, B, S)
            expected += projected.square().mean(0) * size2[:, t - 1, None]
    others = [i for i in range(S) if i != j]
    got = gradient(predictor, history, c).scores[:, others, j]
    torch.testing.assert_close(got, expected[:, others].float(), rtol=1e-4, atol=1e-7)


def test_is_in_the_unit_of_the_intervention() -> None:
    """With a linear predictor and equal variances both scores are the same."""
    weight = torch.rand(S, S, generator=torch.Generator().manual_seed(4))
    predictor, history, c = Linear(weight, frame=-1), slots(), context(sigma2=0.5)
    done = estimate_graph(
        GraphConfig(estimator="interventional", intervention="empty"),
        predictor,
        history,
        PRESENT,
        context=c,
    )
    graph = gradient(predictor, history, c)
    torch.testing.assert_close(graph.scores, done.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(graph.adjacency, done.adjacency, rtol=1e-3, atol=1e-5)


def test_who_weighs_more_scores_more() -> None:
    weight = torch.full((S, S), 0.1)
    weight[2, 4] = 1.0
    scores = gradient(Linear(weight, frame=1), slots(), context()).scores
    assert (scores[:, 2].argmax(-1) == 4).all() and (scores[:, 1].argmax(-1) != 2).any()


def test_nothing_from_where_nothing_comes() -> None:
    """No other slot is seen, or only t = 0 is: exact zeros."""
    for blind in (trained(own_slot_only=True), Linear(torch.ones(S, S), frame=0)):
        assert (gradient(blind, slots(), context()).scores == 0).all()


def test_two_ranks_equal_one() -> None:
    predictor, history, c = trained(), slots(), context()
    present = PRESENT.clone()
    present[1, 3] = False
    whole = gradient(predictor, history, c, present).scores
    ranks = [
        gradient(
            predictor, history[part], dataclasses.replace(c, sample=c.sample[part]), present[part]
        ).scores
        for part in (slice(0, 1), slice(1, B))
    ]
    torch.testing.assert_close(torch.cat(ranks), whole, rtol=1e-4, atol=1e-6)
    assert (whole[1, 3] == 0).all() and (whole[1, :, 3] == 0).all()


def test_draws_are_keyed_and_dropout_is_off_and_on_again() -> None:
    predictor, history, c = trained(), slots(), context()
    state = torch.get_rng_state()
    first, again, other = (
        gradient(predictor, history, dataclasses.replace(c, step=step)).scores for step in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in predictor.modules()) and not first.requires_grad


def test_bfloat16_autocast_is_close() -> None:
    predictor, history, c = trained(), slots(), context()
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradient(predictor, history, c).scores
    torch.testing.assert_close(rough, gradient(predictor, history, c).scores, rtol=0.1, atol=0.02)


def test_one_frame_has_no_past_to_move() -> None:
    with pytest.raises(UserError, match="at least 2 history frames"):
        gradient(trained(), slots()[:, :1], context())
