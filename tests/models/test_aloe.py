"""ALOE: the released numbers and what a row may depend on."""

from dataclasses import replace

import pytest
import torch

from cjepa_dist.config.schema import AloeConfig
from cjepa_dist.errors import UserError
from cjepa_dist.losses.vqa import answer_loss, choice_loss
from cjepa_dist.models.aloe import Aloe, bucket_by_length
from tests.fixtures import parity_tensors

SMALL = AloeConfig(
    slots=3, slot_dim=8, frames=4, width=16, depth=2, heads=2, mlp_dim=32, word_dim=4, head_dim=16
)


def rows(count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "slots": torch.randn(count, 4, 3, 8, generator=generator),
        "tokens": torch.randint(1, 82, (count, 32), generator=generator),
        "padding": torch.rand(count, 32, generator=generator) < 0.3,
        "is_choice": torch.arange(count) % 2 == 0,
    }


@pytest.fixture
def released():
    fixture, state = parity_tensors("aloe_small")
    sizes = {name: int(fixture[name]) for name in ("heads", "frames", "slots")}
    return fixture, state, sizes


def test_released_logits_and_losses(released):
    fixture, state, sizes = released
    model = Aloe.from_reference(state, **sizes).eval()
    words, choice_words = (fixture[f"in/{kind}_q_tokens"] for kind in ("cls", "mc"))
    silent, choice_silent = (fixture[f"in/{kind}_q_pad_mask"] for kind in ("cls", "mc"))
    with torch.no_grad():
        answers = model.answer_logits(fixture["in/cls_video_emb"], words, silent)
        choices = model.choice_logits(
            fixture["in/mc_video_emb"][fixture["in/mc_flag"]], choice_words, choice_silent
        )
        both = model(  # all rows at once, slots one a question
            torch.cat([fixture["in/cls_video_emb"], fixture["in/mc_video_emb"]]),
            torch.cat([words, choice_words]),
            torch.cat([silent, choice_silent]),
            torch.arange(12) >= 3,
            torch.cat([torch.arange(3), fixture["in/mc_flag"] + 3]),
        )
    for found in (answers, both[0][:3]):
        torch.testing.assert_close(found, fixture["out/cls_answer_logits"], atol=1e-5, rtol=0)
    for found in (choices, both[1][3:]):
        torch.testing.assert_close(found, fixture["out/mc_answer_logits"], atol=1e-5, rtol=0)
    answer_label = torch.cat([fixture["in/cls_label"], torch.full((9,), -1)])
    choice_label = torch.cat([torch.full((3,), -1), fixture["in/mc_label"]])
    assert abs(answer_loss(both[0], answer_label, 3).item() - float(fixture["loss/cls"])) < 1e-5
    assert (
        abs(choice_loss(both[1], choice_label, torch.tensor(9)).item() - float(fixture["loss/mc"]))
        < 1e-5
    )


def test_released_names_there_and_back(released):
    _, state, sizes = released
    back = Aloe.from_reference(
        {f"model.{key}": value for key, value in state.items()}, **sizes
    ).to_reference()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    with pytest.raises(UserError, match=r"pos_embedding.*frames and slots"):
        Aloe.from_reference(state, **{**sizes, "frames": 6})
    with pytest.raises(UserError, match=r"lacks CLS"):
        Aloe.from_reference({key: value for key, value in state.items() if key != "CLS"}, **sizes)


def test_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in Aloe(AloeConfig()).parameters()) == 2_879_427


@pytest.mark.parametrize(
    "options", [{}, {"shared_vision": True}, {"shared_vision": True, "factored_position": True}]
)
def test_row_view_is_a_repetition_of_slots(options):
    model, inputs = Aloe(replace(SMALL, **options)).eval(), rows()
    index = torch.tensor([0, 0, 1, 2, 1])
    repeated = model(**{**inputs, "slots": inputs["slots"][index]})
    torch.testing.assert_close(model(**inputs, row_view=index), repeated)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 31, 33])
def test_sizes_are_rounded_up_and_answers_are_the_same(count, shared):
    """Rows in four buckets by length: the answer to a row is the same as for that row alone."""
    torch.manual_seed(count)
    model, length = (
        Aloe(replace(SMALL, shared_vision=shared)).eval(),
        torch.randint(1, 33, (count,)),
    )
    padding = torch.arange(32) >= length[:, None]
    tokens = torch.randint(1, 82, (count, 32)).masked_fill(padding, 0)
    slots = torch.randn(2, SMALL.frames, SMALL.slots, SMALL.slot_dim)
    inputs = {"tokens": tokens, "padding": padding, "is_choice": length > 9, "row_view": length % 2}
    parts = bucket_by_length(torch.cat([torch.zeros(count, 1, dtype=torch.bool), padding], 1))
    assert all(
        len(rows) % 8 == 0 and (words.shape[1] % 4 == 0 or words.shape[1] == 33)
        for rows, words, _ in parts
    )
    alone = [
        model(slots, **{name: value[i : i + 1] for name, value in inputs.items()})
        for i in range(count)
    ]
    together = model(slots, **inputs)
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_shared_vision_is_a_mask():
    """Encoding a video once equals full attention in which slots do not see [CLS] and words."""
    model, inputs = Aloe(replace(SMALL, shared_vision=True)).eval(), rows()
    with torch.no_grad():
        model.position.normal_()
        x = torch.cat(
            [
                model.cls.expand(5, -1, -1),
                model.embed_slots(inputs["slots"]),
                model.embed_words(inputs["tokens"], inputs["is_choice"]),
            ],
            1,
        )
        x = x + model.position
        vision = slice(1, 1 + SMALL.frames * SMALL.slots)
        blind = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        blind[vision] = True
        blind[vision, vision] = False
        padding = torch.cat([torch.zeros(5, vision.stop, dtype=torch.bool), inputs["padding"]], 1)
        for block in model.blocks:
            q, k, v = (
                block.attention.qkv(block.attention_norm(x))
                .unflatten(-1, (3, SMALL.heads, -1))
                .permute(2, 0, 3, 1, 4)
            )
            logits = q @ k.mT / q.shape[-1] ** 0.5
            weights = logits.masked_fill(blind | padding[:, None, None], -torch.inf).softmax(-1)
            x = x + block.attention.out((weights @ v).transpose(1, 2).flatten(2))
            x = x + block.down(torch.relu(block.up(block.norm(x))))
        torch.testing.assert_close(model(**inputs)[0], model.answer(x[:, 0]), atol=1e-5, rtol=1e-4)


def test_padding_is_ignored_and_words_are_not():
    model, inputs = Aloe(SMALL).eval(), rows()
    other = torch.where(inputs["padding"], 0, inputs["tokens"])
    torch.testing.assert_close(model(**{**inputs, "tokens": other}), model(**inputs))
    assert not torch.allclose(
        model(**{**inputs, "tokens": inputs["tokens"].flip(1)})[0], model(**inputs)[0]
    )
    assert not torch.allclose(
        model(**{**inputs, "is_choice": ~inputs["is_choice"]})[1], model(**inputs)[1]
    )


def test_meta_bf16_and_one_graph():
    torch._dynamo.reset()
    model, inputs = Aloe(SMALL), rows()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    sum(logits.sum() for logits in compiled(**inputs)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**inputs)
    torch.testing.assert_close([x.float() for x in low], list(model(**inputs)), atol=0.1, rtol=0.05)
    assert model.to("meta")(**{key: value.to("meta") for key, value in inputs.items()})[
        0
    ].shape == (5, 22)


def test_shapes_that_do_not_fit():
    inputs = rows()
    with pytest.raises(
        ValueError, match=r"slots are \(\d+, 3, 3, 8\); this model takes \(rows, 4, 3, 8\)"
    ):
        Aloe(SMALL)(**{**inputs, "slots": inputs["slots"][:, 1:]})
    with pytest.raises(UserError, match=r"aloe\.heads=5"):
        Aloe(AloeConfig(heads=5, width=144))
