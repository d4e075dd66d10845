"""Vocabulary, encoding, and batches of questions from a real (small) data set."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cjepa_dist.clevrer.vocabulary import (
    ANSWER_IDS,
    MAX_CHOICE_WORDS,
    MAX_QUESTION_WORDS,
    WORD_IDS,
    encode_text,
    tokenize,
)
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.errors import UserError
from tests.fixtures import explanatory_scenes, public_test_scenes, public_vocabulary

T, S, D = 160, 3, 4
PUBLISHED = {"frames": 25, "stride": 5}
TYPES = ("descriptive", "explanatory", "predictive", "counterfactual")


def question(number, kind="descriptive", choices=2, answers=True):
    if kind == "descriptive":
        q = {
            "question_id": number,
            "question": "How many collisions happen?",
            "question_type": kind,
            "question_subtype": "count",
            "answer": "2",
        }
    else:
        text = [
            "The cube and the sphere collide",
            "The sphere collides with the red metal cube",
            "the cube's exit",
            "the presence of the cube",
        ]
        options = [
            {"choice_id": i, "choice": text[i], "answer": "correct" if i % 2 else "wrong"}
            for i in range(choices)
        ]
        q = {
            "question_id": number,
            "question": "What will happen next?",
            "question_type": kind,
            "choices": options,
        }
    if not answers:
        for item in [q, *q.get("choices", [])]:
            item.pop("answer", None)
    return q


def write(folder, videos=4, frames=T, change=lambda content: content, dtype="float16"):
    """`videos` videos; slot value = video + frame / 1000; video 2 has no questions."""
    with DatasetWriter(folder, encoder="test", source={}, dtype=dtype) as writer:
        for v in range(videos):
            slots = np.broadcast_to(
                v + np.arange(frames)[:, None, None] / 1000, (frames, S, D)
            ).astype(np.float32)
            content = None
            if v != 2:
                asked = [
                    question(0),
                    question(1, "explanatory", 4),
                    question(2, "predictive"),
                    question(3, "counterfactual", 3),
                    question(4),
                ]
                content = change(
                    {
                        "scene_index": 100 + v,
                        "video_filename": f"video_{v:05d}.mp4",
                        "questions": asked,
                    }
                )
            writer.split("val").add(
                Sample(f"video_{100 + v:05d}", slots, {"scene_index": 100 + v}, content)
            )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("questions") / "data", dtype="float32")


def test_vocabulary_is_the_public_one():
    public = public_vocabulary()
    assert public["q_vocab"] == WORD_IDS
    assert public["a_vocab"] == ANSWER_IDS


def test_every_real_question_and_choice_is_encoded():
    scenes = [*explanatory_scenes(), *public_test_scenes()]
    names = {number: word for word, number in WORD_IDS.items()}
    seen = 0
    for scene in scenes:
        for q in scene["questions"]:
            for text, length in [
                (q["question"], MAX_QUESTION_WORDS),
                *((c["choice"], MAX_CHOICE_WORDS) for c in q.get("choices", [])),
            ]:
                ids = list(encode_text(text, length))
                words = tokenize(text)
                assert (
                    len(ids) == length
                    and [names[i] for i in ids[: len(words)]] == words
                    and not any(ids[len(words) :])
                )
                assert all(ids[: len(words)])
                seen += 1
    assert seen > 2800


def test_commas_and_possessives_stay_with_their_word():
    assert tokenize("If the cube is removed, what will happen?") == [
        "if",
        "the",
        "cube",
        "is",
        "removed,",
        "what",
        "will",
        "happen",
    ]
    assert tokenize("the Cube's exit") == ["the", "cube's", "exit"]


@given(st.text(max_size=30))
def test_any_text_is_encoded_or_refused(text):
    try:
        ids = encode_text(text, MAX_QUESTION_WORDS)
    except UserError:
        return
    assert len(ids) == MAX_QUESTION_WORDS and set(tokenize(text)) <= set(WORD_IDS)


def test_too_long():
    with pytest.raises(UserError, match="21 words, at most 20"):
        encode_text(" ".join(["the"] * 21), MAX_QUESTION_WORDS)


def test_metadata(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED)
    assert len(source) == 15 and source.labelled
    assert source.type.tolist()[:5] == [
        "descriptive",
        "explanatory",
        "predictive",
        "counterfactual",
        "descriptive",
    ]
    assert source.scene.tolist() == [100] * 5 + [101] * 5 + [103] * 5
    assert source.question_id.tolist() == list(range(5)) * 3
    assert source.rows(1).tolist() == [1, 2, 3, 4] and source.rows(5).tolist() == [11]
    assert source.choice_id[source.rows(1)].tolist() == [0, 1, 2, 3] and source.choice_id[0] == -1


def test_batch(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED, eval_start=3)
    batch = source.get_batch(np.array([13, 1, 0]), np.array([7, 8, 9]))
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {
        "slots": (2, 25, S, D),
        "tokens": (8, 32),
        "padding": (8, 32),
        "is_choice": (8,),
        "kind": (8,),
        "row_view": (8,),
        "label": (8,),
        "question": (3,),
        "sample": (3,),
    }
    assert (
        batch["row_view"].tolist() == [2, 2, 2, 1, 1, 1, 1, 0]
        or len(set(batch["row_view"].tolist())) < 3
    )
    assert batch["label"].tolist() == [0, 1, 0, 0, 1, 0, 1, ANSWER_IDS["2"]]
    assert batch["is_choice"].tolist() == [True] * 7 + [False]
    assert batch["question"].tolist() == [13, 1, 0] and batch["sample"].tolist() == [7, 8, 9]
    assert (
        batch["slots"].dtype == torch.float32
        and batch["tokens"].dtype == torch.int64
        and batch["padding"].dtype == torch.bool
    )
    assert torch.equal(batch["padding"], batch["tokens"] == 0)
    assert bytes(batch["tokens"][4].tolist()) == encode_text(
        "What will happen next?", 20
    ) + encode_text("The sphere collides with the red metal cube", 12)
    assert not batch["tokens"][7, 20:].any()
    expected = torch.tensor([3.0, 0.0, 0.0])[:, None] + (3 + 5 * torch.arange(25)) / 1000
    assert torch.allclose(per_question(source, [13, 1, 0], [7, 8, 9])[:, :, 1, 2], expected)


@pytest.mark.parametrize("start, first", [(0, 32), (3, 35), (7, 39)])
def test_predictive_questions_see_the_end(folder, start, first):
    source = InMemoryQuestions(folder, "val", **PUBLISHED, eval_start=start)
    frames = per_question(source, [2, 3], [0, 1])[:, :, 0, 0] * 1000
    assert frames[0].round().tolist() == [first + 5 * i for i in range(25)]
    assert frames[1].round().tolist() == [start + 5 * i for i in range(25)]
    assert frames.max() < T


def test_no_shift_without_rollout(tmp_path):
    source = InMemoryQuestions(
        write(tmp_path / "data", frames=128), "val", **PUBLISHED, eval_start=7
    )
    assert torch.equal(source.get_batch([2], [0])["slots"], source.get_batch([3], [0])["slots"])
    assert len(source.get_batch([2, 3], [0, 0])["slots"]) == 1  # one view serves both


def per_question(source, ids, sample):
    """(Q, F, S, D): the slots that each question sees."""
    batch = source.get_batch(ids, sample)
    first = np.cumsum([0, *(len(source.rows(i)) for i in ids[:-1])])
    return batch["slots"][batch["row_view"][first]]


def test_videos_hold_all_their_questions(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED)
    videos = VideoQuestions(source)
    assert len(videos) == 3
    batch, plain = (
        videos.get_batch([2, 0], [70, 71]),
        source.get_batch([*range(10, 15), *range(5)], [70] * 5 + [71] * 5),
    )
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert len(batch["slots"]) == 4


def test_only_some_types_are_asked(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED)
    videos = VideoQuestions(source, ["predictive", "counterfactual"])
    batch, plain = videos.get_batch([1, 2], [7, 8]), source.get_batch([7, 8, 12, 13], [7, 7, 8, 8])
    assert len(videos) == 3 and all(torch.equal(batch[name], plain[name]) for name in plain)
    assert videos.sample_names([2]) == ["scene 103"]
    with pytest.raises(
        UserError, match=r"types=\['rhetorical'\]: no question.*counterfactual, descriptive"
    ):
        VideoQuestions(source, ["rhetorical"])


def test_names_are_what_a_user_can_look_up(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED)
    assert source.sample_names([0, 6]) == ["scene 100 question 0", "scene 101 question 1"]
    assert VideoQuestions(source).sample_names([0, 2]) == ["scene 100", "scene 103"]


def test_start_depends_on_the_sample_alone(folder):
    source = InMemoryQuestions(folder, "val", **PUBLISHED, seed=4)
    sample = np.arange(10_000, 18_000)
    drawn = source.sampling.start(sample)
    assert drawn.min() == 0 and drawn.max() == 7
    assert np.abs(np.bincount(drawn) / 1000 - 1).max() < 0.15
    assert (source.sampling.start(sample[5:9]) == drawn[5:9]).all()
    assert (
        InMemoryQuestions(folder, "val", **PUBLISHED, seed=5).sampling.start(sample) != drawn
    ).any()
    assert torch.equal(
        per_question(source, [0, 5, 9], [20, 21, 22])[1:2], per_question(source, [5], [21])
    )


@given(st.lists(st.integers(0, 14), min_size=1, max_size=12), st.integers(0, 2**40), st.booleans())
def test_a_batch_is_its_questions(folder, ids, position, shuffle):
    source = shared_source(folder, shuffle)
    sample = position + np.arange(len(ids))
    batch = source.get_batch(ids, sample)
    row = 0
    for i, q in enumerate(ids):
        alone = source.get_batch([q], sample[i : i + 1])
        count = len(alone["label"])
        for name in ("tokens", "padding", "is_choice", "label"):
            assert torch.equal(batch[name][row : row + count], alone[name])
        assert (batch["slots"][batch["row_view"][row : row + count]] == alone["slots"][0]).all()
        row += count
    assert row == len(batch["label"])


def shared_source(folder, shuffle, cache={}):  # noqa: B006
    return cache.setdefault(
        (folder, shuffle), InMemoryQuestions(folder, "val", **PUBLISHED, shuffle=shuffle)
    )


def test_shuffled_slots_are_one_order_for_all_frames(folder):
    plain, shuffled = (
        InMemoryQuestions(folder, "val", **PUBLISHED, shuffle=shuffle) for shuffle in (False, True)
    )
    for source in (plain, shuffled):
        source.slots = source.slots + 10 * np.arange(S)[:, None]
    orders = set()
    for position in range(20):
        a, b = (
            source.get_batch([0], [position])["slots"][0].numpy() for source in (plain, shuffled)
        )
        order = [
            int(np.flatnonzero((a == b[:, i : i + 1]).all(axis=(0, 2)))[0])
            for i in range(b.shape[1])
        ]
        assert (a[:, order] == b).all()
        orders.add(tuple(order))
    assert len(orders) > 3


def test_blind_shows_another_video(folder):
    sighted = InMemoryQuestions(folder, "val", **PUBLISHED, eval_start=0)
    blind = InMemoryQuestions(folder, "val", **PUBLISHED, eval_start=0, blind=True)
    ids = np.arange(15)
    seen, other = sighted.get_batch(ids, ids), blind.get_batch(ids, ids)
    true, false = (
        per_question(source, ids, ids)[:, 0, 0, 0].floor().long() for source in (sighted, blind)
    )
    assert (true != false).all()
    assert len({(a, b) for a, b in zip(true.tolist(), false.tolist())}) == 3  # one video for each
    assert torch.equal(seen["tokens"], other["tokens"]) and torch.equal(
        seen["label"], other["label"]
    )


def test_negated_questions_without_their_not(tmp_path):
    def negate(content):
        for q in content["questions"]:
            if q["question_type"] == "counterfactual":
                q["question"] = "Which event will not happen if the red metal cube is removed?"
        return content

    source = InMemoryQuestions(write(tmp_path / "data", change=negate), "val", **PUBLISHED)
    ids = np.arange(len(source))
    as_asked = source.get_batch(ids, ids)
    source.sampling.unnegated_until = 5  # samples 0 to 4: the first video
    affirmed = source.get_batch(ids, ids)
    changed = (as_asked["tokens"] != affirmed["tokens"]).any(1)
    expected = (source.type[source.row_question] == "counterfactual") & (source.row_question < 5)
    assert changed.tolist() == expected.tolist() and changed.sum() == 3
    question = torch.tensor(
        list(
            encode_text(
                "Which event will happen if the red metal cube is removed?", MAX_QUESTION_WORDS
            )
        )
    )
    assert (affirmed["tokens"][changed, :MAX_QUESTION_WORDS] == question).all()
    assert torch.equal(
        affirmed["tokens"][:, MAX_QUESTION_WORDS:], as_asked["tokens"][:, MAX_QUESTION_WORDS:]
    )
    assert torch.equal(
        affirmed["label"], torch.where(changed, 1 - as_asked["label"], as_asked["label"])
    )
    assert torch.equal(affirmed["padding"], affirmed["tokens"] == 0)


def test_questions_without_answers(tmp_path):
    def hide(content):
        content["questions"] = [question(i, kind, answers=False) for i, kind in enumerate(TYPES)]
        return content

    source = InMemoryQuestions(write(tmp_path / "data", change=hide), "val", **PUBLISHED)
    assert not source.labelled
    assert (source.get_batch([0, 1], [0, 1])["label"] == -1).all()


def refuse(tmp_path, change, *expected, **options):
    folder = write(tmp_path / "data", change=change)
    with pytest.raises(UserError) as caught:
        InMemoryQuestions(folder, "val", **{**PUBLISHED, **options})
    for part in expected:
        assert part in str(caught.value)


def edit(path, value):
    """Sets a value in the questions of scene 101."""

    def change(content):
        if content["scene_index"] == 101:
            place = content["questions"]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
        return content

    return change


def test_unknown_word_in_a_question(tmp_path):
    refuse(
        tmp_path,
        edit([0, "question"], "How many unicorns happen?"),
        "'unicorns'",
        "question 0 of scene 101",
    )


def test_unknown_word_in_a_choice(tmp_path):
    refuse(
        tmp_path,
        edit([1, "choices", 2, "choice"], "the cube's dance"),
        "'dance'",
        "question 1 of scene 101",
    )


def test_unknown_answer(tmp_path):
    refuse(tmp_path, edit([0, "answer"], "seven"), "'seven'", "question 0 of scene 101")


def test_padding_is_no_answer(tmp_path):
    refuse(tmp_path, edit([0, "answer"], "PAD"), "'PAD'")


def test_unknown_type(tmp_path):
    refuse(
        tmp_path,
        edit([3, "question_type"], "rhetorical"),
        "'rhetorical'",
        "question 3 of scene 101",
    )


def test_missing_field(tmp_path):
    def change(content):
        content["questions"][2].pop("choices")
        return content

    refuse(tmp_path, change, "'choices'", "question 2 of scene 100")


def test_no_choices(tmp_path):
    refuse(tmp_path, edit([2, "choices"], []), "no choices", "question 2 of scene 101")


def test_some_answers_missing(tmp_path):
    refuse(tmp_path, edit([4, "answer"], None), "question 4 of scene 101", "all answers or none")


def test_no_questions(tmp_path):
    refuse(tmp_path, lambda content: None, "no questions")


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 26},
        {"stride": 6},
        {"starts": 9},
        {"eval_start": 8},
        {"eval_start": -1},
        {"frames": 0},
    ],
)
def test_frames_that_do_not_fit(folder, options):
    with pytest.raises(UserError, match=r"frames 0\.\.127"):
        InMemoryQuestions(folder, "val", **{**PUBLISHED, **options})


def test_blind_needs_two_videos(tmp_path):
    with pytest.raises(UserError, match="only one"):
        InMemoryQuestions(write(tmp_path / "data", videos=1), "val", **PUBLISHED, blind=True)
