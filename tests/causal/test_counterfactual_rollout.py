"""Counterfactual rollouts: slots that have not diverged keep their factual values exactly.

Slots that have diverged follow the predictor.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cjepa_dist.causal.counterfactual_rollout import (
    deinterleave,
    predict_block,
    predict_factual,
    rollout_without_object,
)
from cjepa_dist.causal.divergence import GivenFramesRule, GraphRule, PairedRule, is_present
from cjepa_dist.causal.graph import GraphContext
from cjepa_dist.causal.interventional_graph import interventional_scores
from cjepa_dist.config.schema import GraphConfig, PredictorConfig
from cjepa_dist.models.predictor import SlotPredictor

S, D, V, T = 4, 8, 3, 41
EMPTY = torch.zeros(D)
REMOVED = torch.tensor([2, 0, 1])


def model(
    *,
    history_frames: int = 3,
    pred_frames: int = 1,
    own_slot_only: bool = False,
    trained: bool = True,
) -> SlotPredictor:
    """A small predictor; untrained its head is zero and it predicts that nothing moves."""
    torch.manual_seed(0)
    predictor = SlotPredictor(
        PredictorConfig(
            slots=S,
            slot_dim=D,
            history_frames=history_frames,
            pred_frames=pred_frames,
            width=16,
            depth=2,
            heads=2,
            mlp_dim=32,
            dropout=0.0,
            norm_first=True,
            predict_change=True,
            own_slot_only=own_slot_only,
        )
    ).eval()
    if trained:
        torch.nn.init.normal_(predictor.head.weight, std=0.2)
    return predictor


def scenes(seed: int = 1) -> Tensor:
    return torch.randn(V, T, S, D, generator=torch.Generator().manual_seed(seed))


def rolled(
    predictor: SlotPredictor, slots: Tensor, rule, frameskip: int = 2, video: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    video = torch.arange(V) if video is None else video
    with torch.no_grad():
        said = predict_factual(predictor, slots, frameskip)
        return rollout_without_object(
            predictor, slots, said, video, REMOVED[video], rule, frameskip=frameskip, empty=EMPTY
        )


def others(worlds: Tensor) -> Tensor:
    """(W, T, S - 1, D): all slots but the removed one."""
    return worlds.transpose(1, 2)[torch.arange(S) != REMOVED[:, None]].view(V, S - 1, T, D)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_what_is_expected_is_the_prediction_from_true_histories(
    history_frames, pred_frames, frameskip
):
    predictor, slots = model(history_frames=history_frames, pred_frames=pred_frames), scenes()
    with torch.no_grad():
        found = predict_factual(predictor, slots, frameskip, windows=7)
        span = history_frames * frameskip
        assert torch.equal(found[:, :span], slots[:, :span])
        for frame in range(span, T):
            block, inside = divmod(frame - span, pred_frames * frameskip)
            step, offset = divmod(inside, frameskip)
            first = block * pred_frames * frameskip + offset
            z = predictor.predict(slots[:, first : first + span : frameskip])
            torch.testing.assert_close(found[:, frame], z[:, step], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pred_frames", "frameskip"), [(1, 1), (1, 5), (3, 2)])
def test_free_is_the_predictors_rollout_without_the_object(pred_frames, frameskip):
    predictor, slots = model(pred_frames=pred_frames), scenes()
    worlds, diverged = rolled(predictor, slots, GivenFramesRule(torch.zeros(V, S)), frameskip)
    span = 3 * frameskip
    begun = slots[:, :span].clone()
    begun[torch.arange(V), :, REMOVED] = EMPTY
    with torch.no_grad():
        assert torch.equal(others(worlds)[:, :, :span], others(slots)[:, :, :span])
        # One block: that the removed slot stays empty, the predictor's own rollout does not know.
        block = predictor.rollout(begun, pred_frames * frameskip, frameskip)
    kept = torch.arange(S) != REMOVED[:, None]
    found = worlds[:, span : span + block.shape[1]].transpose(1, 2)[kept]
    torch.testing.assert_close(found, block.transpose(1, 2)[kept], rtol=1e-4, atol=1e-5)
    assert (worlds[torch.arange(V), :, REMOVED] == EMPTY).all()
    assert diverged.tolist() == [
        [0 if s == r else span for s in range(S)] for r in REMOVED.tolist()
    ]


def test_every_block_is_predicted_from_the_world_before_it():
    predictor, slots = model(), scenes()
    worlds, _ = rolled(predictor, slots, GivenFramesRule(torch.full((V, S), 20)))
    kept = torch.arange(S) != REMOVED[:, None]
    with torch.no_grad():
        for start in range(20, T - 1, 2):
            z = predict_block(predictor, deinterleave(worlds[:, start - 6 : start], 2))
            torch.testing.assert_close(
                worlds[:, start : start + 2].transpose(1, 2)[kept],
                z.transpose(1, 2)[kept],
                rtol=1e-4,
                atol=1e-5,
            )


def test_the_right_divergence_and_a_perfect_predictor_give_the_truth():
    """The removed slot pushes slot 3 at frame 17; without the push slot 3 stays at rest.

    The untrained predictor predicts rest exactly.
    """
    slots = scenes()[:, :1].repeat(1, T, 1, 1)
    truth = slots.clone()
    truth[torch.arange(V), :, REMOVED] = EMPTY
    slots[:, 17:, 3] += torch.linspace(0.1, 3, T - 17)[:, None]
    when = torch.full((V, S), T)
    when[:, 3] = 17
    worlds, diverged = rolled(model(trained=False), slots, GivenFramesRule(when))
    # Interleaved sequences see the push up to the frame before; what they copy is the resting slot.
    assert torch.equal(worlds, truth)
    assert (diverged[:, 3] == 17).all() and (diverged.sort(dim=1).values[:, 0] == 0).all()


def test_who_cannot_be_influenced_is_never_reached():
    predictor, slots = model(own_slot_only=True), scenes()
    worlds, diverged = rolled(predictor, slots, PairedRule(torch.ones(D), torch.tensor(1e-6)))
    assert torch.equal(others(worlds), others(slots))
    assert diverged.tolist() == [[0 if s == r else T for s in range(S)] for r in REMOVED.tolist()]


def test_an_object_that_never_appears_changes_nothing():
    slots = scenes()
    slots[torch.arange(V), :, REMOVED] = EMPTY
    for rule in (
        PairedRule(torch.ones(D), torch.tensor(0.0)),
        GraphRule(model(), GraphConfig(estimator="full"), context(), EMPTY),
    ):
        worlds, diverged = rolled(model(), slots, rule)
        assert torch.equal(worlds, slots) and (diverged[others_mask()] == T).all()


def test_paired_is_the_intervention_as_long_as_only_the_removed_slot_is_gone():
    predictor, slots = model(), scenes()
    scores = interventional_scores(
        predictor, slots[:, :3], torch.ones(V, S, dtype=torch.bool),
        intervention="empty", sigma2=torch.ones(D), empty=EMPTY,
        seed=0, step=0, sample=torch.arange(V),
    )[torch.arange(V), :, REMOVED]  # fmt: skip
    for tau in scores[scores > 0].tolist():
        for slack, strict in ((0.999, True), (1.001, False)):
            _, diverged = rolled(
                predictor,
                slots[:, :4],
                PairedRule(torch.ones(D), torch.tensor(tau * slack)),
                frameskip=1,
            )
            assert torch.equal(diverged == 3, (scores > tau * slack) & others_mask())
            assert bool((diverged == 3)[scores == tau]) is strict


def test_graphs_spread_along_their_edges():
    slots = scenes()
    for estimator, reached in (("full", 6), ("empty", T)):
        worlds, diverged = rolled(
            model(), slots, GraphRule(model(), GraphConfig(estimator=estimator), context(), EMPTY)
        )
        assert (diverged[others_mask()] == reached).all()
        assert torch.equal(
            worlds, rolled(model(), slots, GivenFramesRule(torch.full((V, S), reached)))[0]
        )


def test_the_rest_of_the_batch_does_not_matter():
    predictor, slots = model(), scenes()
    for rule in (
        PairedRule(torch.ones(D), torch.tensor(0.01)),
        GraphRule(predictor, GraphConfig(tau=0.01), context(), EMPTY),
    ):
        worlds, diverged = rolled(predictor, slots, rule)
        assert ((diverged > 6) & (diverged < T)).any(), "a case that tells something"
        for v in range(V):
            one, frames = rolled(predictor, slots, rule, video=torch.tensor([v]))
            assert torch.equal(frames[0], diverged[v])
            torch.testing.assert_close(one[0], worlds[v], rtol=1e-4, atol=1e-5)


def test_slots_that_hold_nothing_are_not_reached():
    slots = scenes()
    slots[:, :30, 3] = EMPTY  # a late entry
    for rule in (
        PairedRule(torch.ones(D), torch.tensor(0.0)),
        GivenFramesRule(torch.full((V, S), 20), entered=True),
    ):
        _, diverged = rolled(model(), slots, rule)
        assert (diverged[:, 3] == 32).all() and not is_present(slots[:, :30, 3], EMPTY).any()


def context() -> GraphContext:
    return GraphContext(
        torch.ones(D), torch.tensor(1.0), EMPTY, 0, 0, torch.zeros(0, dtype=torch.long)
    )


def others_mask() -> Tensor:
    return torch.arange(S) != REMOVED[:, None]
