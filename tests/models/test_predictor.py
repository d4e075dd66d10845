"""C-JEPA: the released numbers, and what each option may and may not change."""

from dataclasses import replace

import pytest
import torch

from cjepa_dist.config.schema import PredictorConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.predictor import SlotPredictor
from tests.fixtures import parity_tensors

SMALL = PredictorConfig(slots=5, slot_dim=16, depth=2, heads=4, mlp_dim=32, dropout=0.0)
OWN = replace(
    SMALL, width=24, norm_first=True, predict_change=True, last_anchor=True, anchor_all=True
)  # the recipe of our configs
OPTIONS = [
    SMALL,
    OWN,
    replace(SMALL, width=24),
    replace(SMALL, norm_first=True),
    replace(SMALL, last_anchor=True),
    replace(SMALL, anchor_all=True),
    replace(SMALL, own_slot_only=True),
    replace(SMALL, history_frames=6, pred_frames=10),
]


def make(config: PredictorConfig) -> SlotPredictor:
    """A predictor with every parameter random, those that start at zero too."""
    torch.manual_seed(0)
    model = SlotPredictor(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def batch(config: PredictorConfig, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(
        size, config.history_frames, config.slots, config.slot_dim, generator=generator
    )
    hidden = torch.zeros(size, config.slots, dtype=torch.bool)
    hidden[0, 1] = hidden[1, :2] = True
    return history, hidden


@pytest.fixture(params=["small", "long"])
def released(request):
    """Arrays of a fixture as tensors, and the predictor with its weights."""
    fixture, state = parity_tensors(f"predictor_{request.param}")
    sizes = {name: int(fixture[name]) for name in ("history_frames", "pred_frames", "heads")}
    return fixture, state, SlotPredictor.from_reference(state, **sizes).eval()


def test_released_forward_inference_and_rollout(released):
    fixture, _, model = released
    history = fixture["x"][:, : model.config.history_frames]
    hidden = torch.zeros(len(history), history.shape[2], dtype=torch.bool)
    hidden[:, fixture["mask_indices"]] = True
    assert (model.config.depth, model.config.mlp_dim) == (
        int(fixture["depth"]),
        int(fixture["mlp_dim"]),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(history, hidden), fixture["forward_out"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            model.predict(history), fixture["inference_out"], atol=1e-5, rtol=0
        )
        rolled = model.rollout(fixture["rollout_video"], 32, int(fixture["frameskip"]))
        torch.testing.assert_close(rolled, fixture["rollout_out"], atol=1e-5, rtol=0)
        partial = model.rollout(fixture["rollout_video"], 7, int(fixture["frameskip"]))
        torch.testing.assert_close(partial, rolled[:, :7])


def test_released_names_there_and_back(released):
    _, state, model = released
    back = model.to_reference()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    sizes = {
        "history_frames": model.config.history_frames,
        "pred_frames": model.config.pred_frames,
        "heads": model.config.heads,
    }
    inside = {f"model.predictor.{key}": value for key, value in state.items()} | {
        "model.encoder.weight": torch.zeros(1)
    }
    again = SlotPredictor.from_reference(inside, **sizes)
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items()
    )
    with pytest.raises(UserError, match=r"lacks to_out\.bias"):
        SlotPredictor.from_reference(
            {key: value for key, value in state.items() if key != "to_out.bias"}, **sizes
        )
    with pytest.raises(UserError, match="time embeddings"):
        SlotPredictor.from_reference(state, **{**sizes, "pred_frames": 3})
    with pytest.raises(UserError, match="not a released"):
        SlotPredictor.from_reference({}, **sizes)


def test_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in SlotPredictor(PredictorConfig()).parameters()) == 3_590_528


@pytest.mark.parametrize("config", OPTIONS)
def test_shapes_attention_and_no_value_read(config):
    model, (history, hidden) = make(config), batch(config)
    z, attention = model(history, hidden, need_attention=True)
    total = config.history_frames + config.pred_frames
    assert z.shape == (3, total, config.slots, config.slot_dim)
    torch.testing.assert_close(model(history, hidden), z, atol=1e-5, rtol=1e-5)
    assert len(attention) == config.depth and attention[0].shape == (
        3,
        config.heads,
        total * config.slots,
        total * config.slots,
    )
    torch.testing.assert_close(attention[-1].sum(-1), torch.ones(attention[-1].shape[:-1]))
    z.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    unread = SlotPredictor(config).to(
        "meta"
    )  # a meta tensor has no values: reading one is an error
    unread(history.to("meta"), hidden.to("meta")).sum().backward()
    assert (
        unread.rollout(
            torch.empty(2, 40, config.slots, config.slot_dim, device="meta"), 9, 2
        ).shape[1]
        == 9
    )


@pytest.mark.parametrize("config", OPTIONS)
def test_hidden_history_does_not_leak(config):
    model, (history, hidden) = make(config), batch(config)
    other = history.clone()
    other[:, 1:][hidden[:, None].expand(-1, config.history_frames - 1, -1)] += 5.0
    assert torch.equal(model(other, hidden), model(history, hidden))
    anchor = history.clone()
    anchor[0, 0, 1] += 1.0
    assert not torch.allclose(model(anchor, hidden)[0], model(history, hidden)[0])


@pytest.mark.parametrize("config", [SMALL, OWN])
@pytest.mark.parametrize("own", [False, True])
def test_own_slot_only_sees_no_other_slot(config, own):
    model, (history, hidden) = make(replace(config, own_slot_only=own)), batch(config)
    other = history.clone()
    other[:, :, 2] += 1.0
    change = (model(other, hidden) - model(history, hidden)).abs().amax(dim=(0, 1, 3))
    assert change[2] > 1e-3
    assert (change[[0, 1, 3, 4]] == 0).all() if own else (change > 1e-4).all()


@pytest.mark.parametrize("config", OPTIONS)
def test_nothing_of_a_closed_slot_reaches_the_others(config):
    """To the bit, directly and by relay; the others are predicted as if it were not there."""
    model = make(config).eval()
    history, hidden = batch(config)
    closed = torch.zeros_like(hidden)
    closed[0, 1] = closed[1, 2] = closed[2, 0] = True
    other = torch.where(closed[:, None, :, None], torch.randn_like(history) * 9, history)
    for future_only in (False, True):
        z = model(history, hidden, closed=closed, future_only=future_only)
        changed = model(other, hidden, closed=closed, future_only=future_only)
        open_slots = ~closed[:, None, :, None].expand_as(z)
        assert torch.equal(z[open_slots], changed[open_slots])
    everybody = model(history, hidden, closed=torch.zeros_like(hidden))
    torch.testing.assert_close(everybody, model(history, hidden))
    kept = [slot for slot in range(config.slots) if slot != 1]
    fewer = SlotPredictor(replace(config, slots=config.slots - 1)).eval()
    fewer.load_state_dict(model.state_dict())
    z = model(history[:1], hidden[:1], closed=closed[:1])
    expected = fewer(history[:1, :, kept], hidden[:1, kept])
    torch.testing.assert_close(z[:, :, kept], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [*OPTIONS, replace(OWN, rotary=True), replace(OWN, own_slot_only=True, rotary=True)]
)
def test_the_future_alone_is_the_same_future(config):
    model, (history, hidden) = make(config), batch(config)
    (z, maps), ahead = model(history, hidden, need_attention=True), config.pred_frames
    some, last = model(history, hidden, need_attention="last", future_only=True)
    torch.testing.assert_close(some, z[:, -ahead:], atol=1e-5, rtol=1e-5)
    assert len(last) == 1
    torch.testing.assert_close(last[0], maps[-1][:, :, -ahead * config.slots :])


def test_predict_change_starts_as_a_copy_of_the_last_visible_slot():
    model, (history, hidden) = SlotPredictor(OWN), batch(OWN)
    z = model(history, hidden)
    expected = torch.where(hidden[..., None], history[:, 0], history[:, -1])
    assert torch.equal(z, expected[:, None].expand_as(z))
    assert torch.equal(model.predict(history)[:, 0], history[:, -1])


def test_options_are_not_idle():
    history, hidden = batch(SMALL)
    seen = [make(config)(history, hidden) for config in OPTIONS[:-1]]
    for i, a in enumerate(seen):
        assert all(not torch.allclose(a, b) for b in seen[:i])


def test_slots_have_no_order():
    model, (history, hidden) = make(OWN), batch(OWN)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        model(history[:, :, order], hidden[:, order]),
        model(history, hidden)[:, :, order],
        atol=1e-5,
        rtol=1e-5,
    )


def test_samples_of_a_stacked_batch_are_independent():
    model, (history, hidden) = make(OWN), batch(OWN)
    stacked = model(torch.cat([history] * 3), torch.cat([hidden, ~hidden, hidden]))
    torch.testing.assert_close(stacked[:3], model(history, hidden), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stacked[3:6], model(history, ~hidden), atol=1e-6, rtol=1e-5)


def test_short_history_uses_the_last_time_embeddings():
    model, (history, _) = make(SMALL), batch(SMALL)
    short = make(replace(SMALL, history_frames=2))
    state = model.state_dict() | {"time": model.time[:, 1:].detach()}
    short.load_state_dict(state)
    assert torch.equal(model.predict(history[:, 1:]), short.predict(history[:, 1:]))
    with pytest.raises(ValueError, match="history has 4 frames"):
        model.predict(torch.cat([history, history[:, :1]], dim=1))


def test_rollout_is_the_loop_over_offsets():
    config = replace(OWN, pred_frames=2)
    model, frames = make(config), torch.randn(2, 20, 5, 16)
    frameskip, count = 3, 10
    expected = torch.zeros(2, count, 5, 16)
    with torch.no_grad():
        for offset in range(frameskip):
            history = frames[:, [20 - 3 * frameskip + offset + k * frameskip for k in range(3)]]
            for position in range(0, count, 2):
                following = model.predict(history)
                history = torch.cat([history, following], dim=1)[:, -3:]
                for k in range(2):
                    if (frame := offset + (position + k) * frameskip) < count:
                        expected[:, frame] = following[:, k]
        torch.testing.assert_close(
            model.rollout(frames, count, frameskip), expected, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(UserError, match="= 9 frames; the video has 8"):
        model.rollout(frames[:, :8], count, frameskip)


@pytest.mark.parametrize("config", [SMALL, OWN])
def test_bf16_is_close(config):
    model, (history, hidden) = make(config), batch(config)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(history, hidden)
    torch.testing.assert_close(z.float(), model(history, hidden), atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    "config", [replace(SMALL, dropout=0.1), replace(OWN, dropout=0.1, own_slot_only=True)]
)
def test_compiles_as_one_graph(config):
    """Traced as one graph, forward and backward, in training mode.

    Code generation is not tested: it is torch's, and takes much longer.
    """
    torch._dynamo.reset()
    model, (history, hidden) = make(config), batch(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(history, hidden).square().mean().backward()
    model.eval()
    torch.testing.assert_close(
        compiled(history, hidden), model(history, hidden), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        compiled(history, hidden, need_attention=True), model(history, hidden, need_attention=True)
    )


@pytest.mark.slow
def test_compiled_code_is_right():
    torch._dynamo.reset()
    model, (history, hidden) = make(replace(OWN, depth=1)), batch(OWN)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(history, hidden), model(history, hidden), atol=1e-5, rtol=1e-5
        )


def test_bad_widths_and_exports_are_refused():
    with pytest.raises(UserError, match=r"predictor\.heads=5"):
        SlotPredictor(replace(SMALL, heads=5))
    with pytest.raises(UserError, match="width, norm_first"):
        SlotPredictor(OWN).to_reference()


def test_rotary_changes_the_order_of_frames_and_nothing_else() -> None:
    config = PredictorConfig(
        slots=3,
        slot_dim=8,
        history_frames=3,
        pred_frames=1,
        depth=1,
        heads=2,
        mlp_dim=16,
        dropout=0.0,
    )
    torch.manual_seed(0)
    plain, turned = SlotPredictor(config), SlotPredictor(replace(config, rotary=True))
    turned.load_state_dict(plain.state_dict())
    history, hidden = torch.randn(2, 3, 3, 8), torch.zeros(2, 3, dtype=torch.bool)
    assert not torch.allclose(plain(history, hidden), turned(history, hidden), atol=1e-3)
    other = torch.tensor([2, 0, 1])  # slots have no order, with rotary positions as without
    torch.testing.assert_close(
        turned(history[:, :, other], hidden), turned(history, hidden)[:, :, other]
    )
    with pytest.raises(UserError, match="rotary"):
        SlotPredictor(replace(config, slot_dim=6, rotary=True))
