"""Graph estimators: known graphs are recovered, and stacked passes equal single ones.

Neither the order of slots nor the rest of the batch matters.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cjepa_dist.causal import graph as graphs
from cjepa_dist.causal.attention_graph import attention_maps, rollout_scores
from cjepa_dist.causal.graph import Graph, GraphContext, calibrate, estimate_graph
from cjepa_dist.causal.interventional_graph import scaled_error
from cjepa_dist.causal.interventions import draw_other_samples, draw_replacement_slots
from cjepa_dist.config.schema import (
    GRAPH_ESTIMATORS,
    INTERVENTIONS,
    GraphConfig,
    PredictorConfig,
)
from cjepa_dist.errors import UserError
from cjepa_dist.models.predictor import SlotPredictor

B, T_H, T_P, S, D = 4, 3, 2, 5, 16
FROM_PREDICTOR = ("published", "attention", "attention_rollout", "gradient", "interventional")


class Wired(nn.Module):
    """A predictor whose graph is in its input.

    The first S dimensions of slot j say which slots it pushes, the others by how much.
    """

    def forward(self, history: Tensor, hidden: Tensor, *, future_only: bool = False) -> Tensor:
        last = history[:, -1]
        code, push = last[..., :S], last[..., S:]  # (B, j, i), (B, j, D - S)
        moved = torch.einsum("bji,bjd->bid", code * ~hidden[..., None] * (1 - torch.eye(S)), push)
        future = torch.cat([code, push + moved], dim=-1)
        ahead = future[:, None].expand(-1, T_P, -1, -1)
        return ahead if future_only else torch.cat([history, ahead], dim=1)


def wired(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(B, S, S, generator=generator) < 0.3
    truth.diagonal(dim1=1, dim2=2).fill_(False)
    slots = torch.cat(
        [truth.transpose(1, 2).float(), 1 + torch.rand(B, S, D - S, generator=generator)], dim=-1
    )
    return slots[:, None].expand(B, T_H, S, D).contiguous(), truth


@pytest.fixture
def predictor() -> SlotPredictor:
    torch.manual_seed(0)
    config = PredictorConfig(
        slots=S,
        slot_dim=D,
        history_frames=T_H,
        pred_frames=T_P,
        depth=2,
        heads=4,
        mlp_dim=32,
        dropout=0.3,
    )
    return SlotPredictor(config).train()


@pytest.fixture
def history() -> Tensor:
    return torch.randn(B, T_H, S, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def present() -> Tensor:
    present = torch.ones(B, S, dtype=torch.bool)
    present[0, 2] = present[1, 0] = present[1, 4] = False
    return present


def context(batch: int = B, device: str = "cpu") -> GraphContext:
    generator = torch.Generator().manual_seed(2)
    sigma2 = torch.rand(D, generator=generator).to(device) + 0.5
    return GraphContext(
        sigma2,
        torch.tensor(0.05, device=device),
        torch.zeros(D, device=device),
        0,
        3,
        torch.arange(50, 50 + batch, device=device),
    )


def truth() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    contact = torch.rand(B, S, S, generator=generator) < 0.3
    return {
        "contact": contact | contact.transpose(1, 2),
        "position": torch.rand(B, T_H + T_P, S, 2, generator=generator),
    }


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), how=st.sampled_from(["hide", "empty"]))
def test_recovers_a_known_graph_exactly(seed: int, how: str) -> None:
    history, expected = wired(seed)
    config = GraphConfig(estimator="interventional", intervention=how)
    graph = estimate_graph(
        config, Wired(), history, torch.ones(B, S, dtype=torch.bool), context=context()
    )
    edges = graph.adjacency > 0.5
    assert torch.equal(edges, expected | torch.eye(S, dtype=torch.bool))


@pytest.mark.parametrize("name", ["interventional", "gradient"])
def test_absent_slots_cost_nothing_and_change_nothing(
    predictor: SlotPredictor, history: Tensor, present: Tensor, name: str
) -> None:
    """The graph of the present slots is that of all slots, without the rows of the absent ones."""
    assert not present.all()
    predictor.eval()
    rows: list[int] = []
    predictor.slot_in.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    config = GraphConfig(estimator=name, intervention="empty")
    some, every = (
        estimate_graph(config, predictor, history, shown, context=context()).scores
        for shown in (present, torch.ones_like(present))
    )
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(S, dtype=torch.bool)
    torch.testing.assert_close(some[pairs], every[pairs], rtol=1e-5, atol=1e-6)
    assert not some[~pairs].any()
    factual = B if name == "interventional" else 0
    assert rows == [factual + int(present.sum()), factual + B * S]


@pytest.mark.parametrize("how", INTERVENTIONS)
def test_one_stack_equals_one_pass_a_slot(
    predictor: SlotPredictor, history: Tensor, how: str
) -> None:
    present, c = torch.ones(B, S, dtype=torch.bool), context()
    graph = estimate_graph(
        GraphConfig(estimator="interventional", intervention=how),
        predictor,
        history,
        present,
        context=c,
    )
    assert all(m.training for m in predictor.modules()), "estimate restores the mode"
    predictor.eval()
    nothing = torch.zeros(B, S, dtype=torch.bool)
    base, other = (
        predictor(history, nothing),
        draw_replacement_slots(history, present, c.seed, c.step, c.sample),
    )
    for j in range(S):
        changed, hidden, closed = history.clone(), nothing.clone(), nothing.clone()
        if how == "hide":
            hidden[:, j] = True
        elif how == "close":
            closed[:, j] = True
        else:
            changed[:, :, j] = c.empty if how == "empty" else other[:, :, j]
        z = predictor(changed, hidden, closed=closed)
        nats = scaled_error(z[:, T_H:], base[:, T_H:], c.sigma2)
        others = [i for i in range(S) if i != j]
        torch.testing.assert_close(
            graph.scores[:, others, j], nats[:, others], rtol=1e-4, atol=1e-6
        )


def test_swap_takes_a_present_slot_of_another_window(history: Tensor, present: Tensor) -> None:
    sample = torch.arange(B)
    for step in range(20):
        partner, swapped = (
            draw_other_samples(B, 0, step, sample),
            draw_replacement_slots(history, present, 0, step, sample),
        )
        assert (partner != torch.arange(B)).all()
        for b in range(B):
            allowed = history[partner[b]][:, present[partner[b]]]  # (T, P, D)
            for j in range(S):
                assert (swapped[b, :, j, None] == allowed).all(dim=(0, 2)).any()
    with pytest.raises(UserError, match="at least 2"):
        draw_replacement_slots(history[:1], present[:1], 0, 0, sample[:1])


@pytest.mark.parametrize(
    "name",
    [*FROM_PREDICTOR, "distance", "extrapolated_distance", "oracle", "shuffled", "full", "empty"],
)
def test_every_graph_is_a_graph(
    predictor: SlotPredictor, history: Tensor, present: Tensor, name: str
) -> None:
    graph = estimate_graph(
        GraphConfig(estimator=name), predictor, history, present, context=context(), truth=truth()
    )
    assert graph.adjacency.shape == graph.scores.shape == (B, S, S)
    assert (
        (graph.adjacency >= 0).all()
        and (graph.adjacency <= 1).all()
        and graph.scores.isfinite().all()
    )
    assert (graph.adjacency.diagonal(dim1=1, dim2=2) == 1).all()
    apart = ~(present[:, :, None] & present[:, None]) & ~torch.eye(S, dtype=torch.bool)
    assert (graph.adjacency[apart] == 0).all() and (graph.scores[apart] == 0).all()
    assert not graph.adjacency.requires_grad


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "attention_rollout",
        "gradient",
        "interventional",
        "distance",
        "extrapolated_distance",
        "oracle",
    ],
)
def test_follows_slot_order_and_not_the_batch(
    predictor: SlotPredictor, history: Tensor, present: Tensor, name: str
) -> None:
    config, c, known = GraphConfig(estimator=name), context(), truth()
    whole = estimate_graph(config, predictor, history, present, context=c, truth=known)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {
        "contact": known["contact"][:, order][:, :, order],
        "position": known["position"][:, :, order],
    }
    turned = estimate_graph(
        config, predictor, history[:, :, order], present[:, order], context=c, truth=shuffled
    )
    torch.testing.assert_close(
        turned.adjacency, whole.adjacency[:, order][:, :, order], rtol=1e-4, atol=1e-4
    )
    half = estimate_graph(
        config,
        predictor,
        history[2:],
        present[2:],
        context=dataclasses.replace(c, sample=c.sample[2:]),
        truth={name: value[2:] for name, value in known.items()},
    )
    torch.testing.assert_close(half.adjacency, whole.adjacency[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", INTERVENTIONS)
@pytest.mark.parametrize("name", FROM_PREDICTOR)
def test_reads_no_value_from_the_device(
    predictor: SlotPredictor, history: Tensor, present: Tensor, name: str, how: str
) -> None:
    config = GraphConfig(estimator=name, intervention=how)
    graph = estimate_graph(
        config,
        predictor.to("meta"),
        history.to("meta"),
        present.to("meta"),
        context=context(device="meta"),
    )
    assert graph.adjacency.is_meta and graph.adjacency.shape == (B, S, S)


@pytest.mark.parametrize("name", ["attention", "gradient", "interventional"])
def test_compiles_as_one_graph(
    predictor: SlotPredictor, history: Tensor, present: Tensor, name: str
) -> None:
    config, c = GraphConfig(estimator=name), context()

    def run(history: Tensor) -> Tensor:
        return estimate_graph(config, predictor, history, present, context=c).adjacency

    torch.testing.assert_close(
        torch.compile(run, backend="eager", fullgraph=True)(history), run(history)
    )
    assert all(m.training for m in predictor.modules())


def test_a_predictor_that_sees_no_other_slot_has_no_edges(history: Tensor, present: Tensor) -> None:
    alone = SlotPredictor(
        PredictorConfig(
            slots=S,
            slot_dim=D,
            history_frames=T_H,
            pred_frames=T_P,
            depth=2,
            heads=4,
            mlp_dim=32,
            own_slot_only=True,
        )
    )
    for name in ("attention", "attention_rollout", "gradient", "interventional"):
        graph = estimate_graph(
            GraphConfig(estimator=name), alone, history, present, context=context()
        )
        torch.testing.assert_close(graph.adjacency, torch.eye(S).expand(B, S, S), atol=1e-4, rtol=0)


def test_attention_is_shared_among_present_others(
    predictor: SlotPredictor, history: Tensor, present: Tensor
) -> None:
    graph = estimate_graph(
        GraphConfig(estimator="attention"), predictor, history, present, context=context()
    )
    torch.testing.assert_close(graph.scores.sum(-1), present.float())


def test_published_is_a_constant_over_the_batch(predictor: SlotPredictor, history: Tensor) -> None:
    everybody = torch.ones(B, S, dtype=torch.bool)
    scores = estimate_graph(
        GraphConfig(estimator="published"), predictor, history, everybody, context=context()
    ).scores
    assert (scores == scores[:1]).all()
    assert (scores.sum(-1) < 1 / (T_H + T_P) + 1e-6).all()


def test_rollout_equals_its_definition(
    predictor: SlotPredictor, history: Tensor, present: Tensor
) -> None:
    maps = attention_maps(predictor.eval(), history, torch.zeros_like(present))
    flow = torch.eye(maps[0].shape[-1]).expand(B, -1, -1)
    for layer in maps:
        flow = (torch.eye(flow.shape[-1]) + layer.mean(1)) / 2 @ flow
    got = rollout_scores(maps, T_H, S, present)
    for i, j in ((0, 1), (3, 0)):
        rows = [(T_H + f) * S + i for f in range(T_P)]
        expected = flow[2][rows][:, j::S].sum(1).mean()
        torch.testing.assert_close(got[2, i, j], expected)


def test_extrapolated_distance_foresees_an_encounter() -> None:
    """Slots 0 and 1 meet within the interval, slot 2 passed slot 0 and leaves."""
    position = torch.zeros(1, T_H + T_P, 3, 2)
    t = torch.arange(T_H + T_P).float()
    position[0, :, 0, 0], position[0, :, 1, 0], position[0, :, 2, 0] = 0.0, 4.0 - t, -0.5 - 0.25 * t
    known, present = {"position": position}, torch.ones(1, 3, dtype=torch.bool)
    history = torch.zeros(1, T_H, 3, D)
    near, ahead = (
        estimate_graph(
            GraphConfig(estimator=name), Wired(), history, present, context=context(1), truth=known
        )
        for name in ("distance", "extrapolated_distance")
    )
    torch.testing.assert_close(near.scores[0, 0], torch.tensor([0.0, 1 / 2, 1 / 1]))
    assert ahead.scores[0, 0, 1] > 1e5 and ahead.scores[0, 0, 2] == near.scores[0, 0, 2]
    torch.testing.assert_close(ahead.scores, ahead.scores.transpose(1, 2))
    assert ahead.adjacency[0, 0, 1] > 0.99


def test_controls(history: Tensor, present: Tensor) -> None:
    known, both = truth(), present[:, :, None] & present[:, None] & ~torch.eye(S, dtype=torch.bool)

    def edges(name: str) -> Tensor:
        adjacency = estimate_graph(
            GraphConfig(estimator=name), Wired(), history, present, context=context(), truth=known
        ).adjacency
        assert set(adjacency.unique().tolist()) <= {0.0, 1.0}
        return (adjacency > 0.5) & ~torch.eye(S, dtype=torch.bool)

    assert torch.equal(edges("oracle"), known["contact"] & both)
    assert torch.equal(edges("full"), both) and not edges("empty").any()
    other = draw_other_samples(B, 0, 3, context().sample)
    assert torch.equal(edges("shuffled"), known["contact"][other] & both)


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(0, 1e4, width=32), min_size=S * S, max_size=S * S),
    tau=st.floats(1e-3, 1e3),
)
def test_calibration_is_monotone_and_half_at_tau(scores: list[float], tau: float) -> None:
    raw = torch.tensor(scores).view(1, S, S)
    adjacency = calibrate(raw, torch.tensor(tau), torch.ones(1, S, dtype=torch.bool))
    off = ~torch.eye(S, dtype=torch.bool)
    ranked, order = raw[0][off].sort()
    assert (adjacency[0][off][order].diff() >= -1e-6).all()
    assert (
        torch.equal(adjacency[0][off][order] > 0.5, ranked > tau)
        or ((ranked - tau).abs() / tau).min() < 1e-5
    )
    half = calibrate(
        torch.full((1, S, S), tau), torch.tensor(tau), torch.ones(1, S, dtype=torch.bool)
    )
    torch.testing.assert_close(half[0][off], torch.full((S * (S - 1),), 0.5))


def test_a_set_tau_wins(predictor: SlotPredictor, history: Tensor) -> None:
    present = torch.ones(B, S, dtype=torch.bool)

    def edges(tau: float) -> int:
        graph: Graph = estimate_graph(
            GraphConfig(tau=tau), predictor, history, present, context=context()
        )
        return int((graph.adjacency > 0.5).sum()) - B * S

    assert edges(1e-9) == B * S * (S - 1) and edges(1e9) == 0


def test_errors_and_scores_have_one_unit() -> None:
    sigma2 = torch.tensor([1.0, 4.0])
    error = torch.tensor([2.0, 2.0]).expand(1, T_P, 3, 2)
    torch.testing.assert_close(
        scaled_error(error, torch.zeros_like(error), sigma2), torch.full((1, 3), 4 / 2 + 4 / 8)
    )


def test_errors_name_the_thing(predictor: SlotPredictor, history: Tensor, present: Tensor) -> None:
    with pytest.raises(UserError, match="'oracle' needs the simulator's truth"):
        estimate_graph(
            GraphConfig(estimator="oracle"), predictor, history, present, context=context()
        )
    with pytest.raises(UserError, match="'astrology': must be one of"):
        estimate_graph(
            GraphConfig(estimator="astrology"), predictor, history, present, context=context()
        )
    assert list(graphs.ESTIMATORS) == GRAPH_ESTIMATORS
