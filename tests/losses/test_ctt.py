"""The CTT losses: published ones equal the reference, corrected ones have their properties."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cjepa_dist.causal.attention_graph import attention_maps, published_adjacency
from cjepa_dist.causal.graph import Graph
from cjepa_dist.causal.interventions import draw_replacement_slots
from cjepa_dist.config.schema import (
    INTERVENTIONS,
    InvarianceConfig,
    PredictorConfig,
    SufficiencyConfig,
)
from cjepa_dist.losses import ctt
from cjepa_dist.models.dropout import without_dropout
from cjepa_dist.models.predictor import SlotPredictor
from tests.fixtures import parity_tensors

B, T_H, T_P, S, D = 12, 3, 1, 5, 16


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
def window() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(B, S, generator=generator) < 0.2
    present = torch.rand(B, S, generator=generator) < 0.8
    hidden[0], present[1] = True, False  # two samples without an eligible slot
    adjacency = torch.rand(B, S, S, generator=generator)
    adjacency.diagonal(dim1=1, dim2=2).fill_(1)
    return {
        "x": torch.randn(B, T_H + T_P, S, D, generator=generator),
        "hidden": hidden,
        "present": present,
        "adjacency": adjacency,
        "sigma2": torch.rand(D, generator=generator) + 0.5,
        "sample": torch.arange(100, 100 + B),
    }


def terms(
    predictor: SlotPredictor,
    w: dict[str, Tensor],
    adjacency: Tensor | None = None,
    margin: float = 0.02,
    **more,
) -> ctt.CttTerms:
    adjacency = w["adjacency"] if adjacency is None else adjacency
    graph = Graph(adjacency, adjacency)
    return ctt.per_sample_terms(
        predictor,
        w["x"],
        w["hidden"],
        w["present"],
        graph,
        w["sigma2"],
        margin=margin,
        seed=3,
        step=7,
        sample=w["sample"],
        **more,
    )


# --- published ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "long"])
def test_published_equals_the_reference(name: str) -> None:
    d, state = parity_tensors(f"predictor_{name}")
    frames, slots = int(d["history_frames"]), d["x"].shape[2]
    model = SlotPredictor.from_reference(
        state,
        history_frames=frames,
        pred_frames=int(d["pred_frames"]),
        heads=int(d["heads"]),
        dropout=0.0,
    )
    x = d["x"]
    hidden = torch.zeros(len(x), slots, dtype=torch.bool)
    hidden[:, d["mask_indices"]] = True
    adjacency = published_adjacency(attention_maps(model, x[:, :frames], hidden)[-1], frames, slots)
    torch.testing.assert_close(adjacency, d["ctt/adjacency"], atol=1e-5, rtol=0)

    def run(clean: Tensor | None) -> ctt.CttTerms:
        return ctt.published_terms(
            model,
            x,
            hidden,
            clean,
            threshold=float(d["ctt/threshold"]),
            invariance_slot=int(d["ctt/inv_slot"]),
            sufficiency_slot=int(d["ctt/suf_slot"]),
        )

    got = run(None)
    invariance, sufficiency = (
        got.invariance_sum / got.invariance_count,
        got.sufficiency_sum / got.sufficiency_count,
    )
    assert abs(float(invariance) - float(d["ctt/loss_inv"])) < 1e-5
    assert abs(float(sufficiency) - float(d["ctt/loss_suf"])) < 1e-5
    assert got.invariance_count == len(x) * len(d["ctt/inv_non_neighbours"])
    given = run(model(x[:, :frames], hidden).detach())
    torch.testing.assert_close(given.invariance_sum, got.invariance_sum)

    (0.2 * invariance + 0.1 * sufficiency).backward()
    for theirs in (key for key in d if key.startswith("ctt/grad/")):
        torch.testing.assert_close(
            reference_gradient(model, theirs.removeprefix("ctt/grad/")),
            d[theirs],
            atol=1e-5,
            rtol=1e-4,
        )


def reference_gradient(model: SlotPredictor, theirs: str) -> Tensor:
    """The gradient by its released name: the parameters' `to_reference` applied to gradients."""
    grads = SlotPredictor(model.config)
    grads.load_state_dict(
        {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }
    )
    return grads.to_reference()[theirs]


def test_published_terms_without_slots_are_zero(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    hidden = torch.zeros(B, S, dtype=torch.bool)
    got = ctt.published_terms(
        predictor, window["x"], hidden, threshold=0.0, invariance_slot=0, sufficiency_slot=1
    )  # nothing is below 0
    for value in (
        got.invariance_sum,
        got.invariance_count,
        got.sufficiency_sum,
        got.sufficiency_count,
    ):
        assert value == 0
    everybody = ctt.published_terms(
        predictor, window["x"], hidden, threshold=1.0, invariance_slot=0, sufficiency_slot=1
    )
    assert everybody.invariance_count == B * (S - 1)
    assert (
        everybody.metrics["non_neighbour_fraction"] == 1
        and everybody.metrics["edges_per_slot"] == 0
    )


def test_draws_are_visible_and_vary_with_the_step() -> None:
    hidden = torch.zeros(4, 7, dtype=torch.bool)
    hidden[:, [1, 4]] = True
    drawn = torch.tensor([ctt.draw_batch_slots(hidden, seed=0, step=step) for step in range(200)])
    assert set(drawn.flatten().tolist()) == {0, 2, 3, 5, 6}
    assert (drawn[:, 0] != drawn[:, 1]).any()


# --- per sample -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["clean", "truth", "removed"])
@pytest.mark.parametrize("how", INTERVENTIONS)
def test_equals_the_equations_written_as_loops(
    predictor: SlotPredictor, window: dict[str, Tensor], how: str, target: str
) -> None:
    predictor.eval()
    margin, w, empty = 0.0, window, torch.full((D,), 0.7)
    w["hidden"] = torch.rand(B, S, generator=torch.Generator().manual_seed(4)) < 0.4
    w["hidden"][0] = True
    others = "hide" if how == "swap" else how
    got = terms(
        predictor,
        w,
        margin=margin,
        invariance=InvarianceConfig(intervention=how, target=target),
        sufficiency=SufficiencyConfig(intervention=others),
        empty=empty,
    )
    eligible = w["present"] & ~w["hidden"]
    i_of = ctt.draw_sample_slots(eligible, 3, 7, w["sample"], ctt.STREAM_INVARIANCE)
    k_of = ctt.draw_sample_slots(eligible, 3, 7, w["sample"], ctt.STREAM_SUFFICIENCY)
    history = w["x"][:, :T_H]
    swapped = draw_replacement_slots(history, w["present"], 3, 7, w["sample"])
    inv, weights, suf, count = 0.0, 0.0, 0.0, 0

    def prediction(b: int, out: list[int], how: str) -> Tensor:
        seen, mask = history[b].clone(), w["hidden"][b].clone()
        closed = torch.zeros(1, S, dtype=torch.bool)
        for j in out:
            if how == "close":
                closed[0, j] = True
                continue
            mask[j] = how == "hide"
            if how != "hide":
                seen[:, j] = empty if how == "empty" else swapped[b, :, j]
        with torch.no_grad():
            return predictor(seen[None], mask[None], closed=closed)[0, T_H:]

    for b in range(B):
        if not eligible[b].any():
            continue
        i, k, a = int(i_of[b]), int(k_of[b]), w["adjacency"][b]
        far = [j for j in range(S) if j != k and float(a[k, j]) <= 0.5]
        z0, z1, z2 = prediction(b, [], how), prediction(b, [i], how), prediction(b, far, others)
        truth = w["x"][b, T_H:]

        def e(p: Tensor, q: Tensor, j: int) -> float:
            return float(((p[:, j] - q[:, j]).square() / w["sigma2"]).mean())

        for j in range(S):
            if eligible[b, j] and j != i and e(z1, truth, j) - e(z0, truth, j) <= margin:
                weight = 1 - float(a[j, i])
                distance = e(z1, truth, j) if target == "truth" else e(z1, z0, j)
                inv, weights = inv + weight * distance, weights + weight
        suf, count = suf + max(0.0, e(z2, truth, k) - e(z0, truth, k) - margin), count + 1
    assert count == int(eligible.any(dim=1).sum()) > 2 and suf > 0
    np.testing.assert_allclose(
        [float(got.invariance_sum), float(got.invariance_count)], [inv, weights], rtol=1e-4
    )
    np.testing.assert_allclose(
        [float(got.sufficiency_sum), float(got.sufficiency_count)], [suf, count], rtol=1e-4
    )


class SumOfNeighbours(nn.Module):
    """A perfect predictor of a world that is known: what it does not see counts as 0.

    The future of a slot is the sum of the last frames of the slots that influence it.
    """

    def __init__(self, influence: Tensor) -> None:
        super().__init__()
        self.config = PredictorConfig(slots=S, slot_dim=D, history_frames=T_H, pred_frames=T_P)
        self.influence = influence  # (S, S), 1 where slot j influences slot i

    def forward(self, history: Tensor, hidden: Tensor, future_only: bool = False) -> Tensor:
        seen = history[:, -1] * ~hidden[..., None]
        future = torch.einsum("ij,bjd->bid", self.influence, seen)[:, None]
        return future if future_only else torch.cat([history, future], dim=1)


@pytest.mark.parametrize("hidden_slots", [0, 1, 2])
def test_sufficiency_of_a_graph_that_lacks_a_neighbour(hidden_slots: int) -> None:
    """It is the error that the missing neighbour makes, however many other slots are hidden.

    With the right graph it is 0, whatever is hidden: both passes see the same of it.
    """
    influence = torch.eye(S)
    influence[0, 1:] = 1.0  # everybody influences slot 0
    generator = torch.Generator().manual_seed(5)
    # Each slot has dimensions of its own, so that what two slots add to an error does not mix.
    own = torch.arange(D) // (D // S) == torch.arange(S)[:, None]
    history = torch.randn(64, T_H, S, D, generator=generator) * own
    hidden = torch.zeros(64, S, dtype=torch.bool)
    hidden[:, 2 : 2 + hidden_slots] = True
    present = torch.zeros_like(hidden)
    present[:, 0] = True  # k is slot 0 in every sample
    truth = torch.einsum("ij,bjd->bid", influence, history[:, -1])[:, None]
    w = {
        "x": torch.cat([history, truth], dim=1),
        "hidden": hidden,
        "present": present,
        "sigma2": torch.ones(D),
        "sample": torch.arange(64),
    }
    world = SumOfNeighbours(influence)
    right = terms(world, w, influence.expand(64, S, S), margin=0.0)
    assert right.sufficiency_sum < 1e-5
    lacking = influence.clone()
    lacking[0, 1] = 0.0
    got = terms(world, w, lacking.expand(64, S, S), margin=0.0)
    torch.testing.assert_close(got.sufficiency_sum, history[:, -1, 1].square().mean(1).sum())


def test_removed_teaches_the_pass_that_sees_everything(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    z0 = torch.randn(B, T_H + T_P, S, D, requires_grad=True)
    config = InvarianceConfig(intervention="empty", target="removed")
    got = terms(
        predictor,
        window,
        margin=100.0,
        base_prediction=z0,
        invariance=config,
        empty=torch.zeros(D),
    )
    got.invariance_sum.backward()
    assert z0.grad is not None and z0.grad[:, T_H:].abs().sum() > 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in predictor.parameters())


def test_two_shards_add_up_to_the_whole(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    whole = terms(predictor, window)
    parts = [
        terms(predictor, {k: v if k == "sigma2" else v[a:b] for k, v in window.items()})
        for a, b in ((0, 2), (2, B))
    ]
    for name in ("invariance_sum", "invariance_count", "sufficiency_sum", "sufficiency_count"):
        torch.testing.assert_close(
            sum(getattr(p, name) for p in parts), getattr(whole, name), rtol=1e-5, atol=1e-6
        )


def test_no_gradient_reaches_graph_or_clean_prediction(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    adjacency = window["adjacency"].clone().requires_grad_()
    z0 = torch.randn(B, T_H + T_P, S, D, requires_grad=True)
    got = terms(predictor, window, adjacency, margin=100.0, base_prediction=z0)
    got.invariance_sum.backward()
    assert adjacency.grad is None and z0.grad is None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())
    assert not got.invariance_count.requires_grad


def test_given_clean_prediction_changes_nothing(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    stacked = terms(predictor, window)
    with torch.no_grad(), without_dropout(predictor):
        z0 = predictor(window["x"][:, :T_H], window["hidden"])
    given = terms(predictor, window, base_prediction=z0)
    assert stacked.base_prediction is not None and stacked.base_prediction.requires_grad
    torch.testing.assert_close(stacked.base_prediction, z0)
    for name in ("invariance_sum", "invariance_count", "sufficiency_sum", "sufficiency_count"):
        torch.testing.assert_close(
            getattr(given, name), getattr(stacked, name), rtol=1e-5, atol=1e-6
        )


def test_limits_full_and_empty_graph(predictor: SlotPredictor, window: dict[str, Tensor]) -> None:
    window["hidden"] = torch.zeros(B, S, dtype=torch.bool)
    full = terms(predictor, window, torch.ones(B, S, S))
    assert full.invariance_count == 0 and full.invariance_sum == 0  # nobody is a non-neighbour
    assert full.sufficiency_sum == 0  # nothing is hidden: e2 = e0
    assert full.metrics["non_neighbour_fraction"] == 0
    empty = terms(predictor, window, torch.eye(S).expand(B, S, S), margin=1e9)
    present = window["present"]
    drawn = ctt.draw_sample_slots(present, 3, 7, window["sample"], ctt.STREAM_INVARIANCE)
    expected = present.sum() - present.any(1).sum()
    assert (
        empty.invariance_count == expected
        and present.gather(1, drawn[:, None]).sum() == present.any(1).sum()
    )
    assert empty.metrics["edges_per_slot"] == 0


def test_slots_that_hiding_hurt_are_left_out(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    """A very negative margin excludes every slot: none got that much better."""
    got = terms(predictor, window, torch.eye(S).expand(B, S, S), margin=-1e9)
    assert got.invariance_count == 0 and got.invariance_sum == 0


def test_dropout_is_off_inside_and_restored(
    predictor: SlotPredictor, window: dict[str, Tensor]
) -> None:
    predictor.blocks[0].eval()
    before = [m.training for m in predictor.modules()]
    first, second = terms(predictor, window), terms(predictor, window)
    assert first.invariance_sum == second.invariance_sum
    assert [m.training for m in predictor.modules()] == before
    with pytest.raises(RuntimeError), without_dropout(predictor):
        assert not any(m.training for m in predictor.modules())
        raise RuntimeError
    assert [m.training for m in predictor.modules()] == before


@pytest.mark.parametrize("kind", ["published", "per_sample"])
def test_reads_no_value_from_the_device(
    predictor: SlotPredictor, window: dict[str, Tensor], kind: str
) -> None:
    model = predictor.to("meta")
    w = {name: value.to("meta") for name, value in window.items()}
    if kind == "published":
        i, k = ctt.draw_batch_slots(w["hidden"], seed=0, step=0)
        got = ctt.published_terms(
            model, w["x"], w["hidden"], threshold=0.15, invariance_slot=i, sufficiency_slot=k
        )
    else:
        got = terms(model, w)
    (got.invariance_sum + got.sufficiency_sum).backward()
    assert got.invariance_sum.is_meta and got.invariance_sum.shape == ()


def test_compiles_as_one_graph(predictor: SlotPredictor, window: dict[str, Tensor]) -> None:
    compiled = torch.compile(terms, backend="eager", fullgraph=True)
    got, expected = compiled(predictor, window), terms(predictor, window)
    torch.testing.assert_close(got.invariance_sum, expected.invariance_sum)
    assert all(m.training for m in predictor.modules())


# --- consistency ----------------------------------------------------------------------------------


def test_consistency_is_the_error_of_the_rollout(predictor: SlotPredictor) -> None:
    """Equal to the predictor's own `rollout`; gradients reach the first of several predictions."""
    generator = torch.Generator().manual_seed(2)
    x, sigma2 = (
        torch.randn(B, T_H + 3 * T_P, S, D, generator=generator),
        torch.rand(D, generator=generator) + 0.5,
    )
    got = ctt.consistency_loss(predictor, x, sigma2, {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.0})
    predictor.eval()
    rolled = predictor.rollout(x[:, :T_H], 3, 1)
    errors = ((rolled - x[:, T_H:]).square() / sigma2).mean(dim=(0, 2, 3))
    torch.testing.assert_close(got, errors[0] + 0.5 / 2 * errors[1] + 0.25 / 3 * errors[2])
    predictor.train()
    ctt.consistency_loss(predictor, x, sigma2, {3: 1.0}).backward()
    assert predictor.first_anchor.weight.grad.abs().sum() > 0 and predictor.training
