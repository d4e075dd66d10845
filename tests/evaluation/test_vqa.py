import json

import numpy as np
import pytest
import torch

from cjepa_dist.config.schema import AloeConfig
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.questions import InMemoryQuestions
from cjepa_dist.evaluation.bootstrap import bootstrap, pooled_mean
from cjepa_dist.evaluation.vqa import baselines, metrics, predictions, submission
from cjepa_dist.evaluation.vqa.inference import predict_answers
from cjepa_dist.models.aloe import Aloe
from tests.evaluation.world import DIM, SLOTS, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("toy") / "data")


def verdict(scene, kind, given, answers):
    if kind == "descriptive":
        return predictions.Prediction(
            scene, {"question_id": 0, "question_type": kind, "answer": answers}, given
        )
    choices = [{"choice_id": i, "answer": label} for i, label in enumerate(answers)]
    return predictions.Prediction(
        scene, {"question_id": 5, "question_type": kind, "choices": choices}, given
    )


def test_counts_per_option_and_per_question():
    verdicts = [
        verdict(1, "descriptive", "yes", "yes"),
        verdict(2, "descriptive", "yes", "no"),
        verdict(1, "explanatory", [True, False], ["correct", "correct"]),
        verdict(2, "predictive", [True, False], ["correct", "wrong"]),
    ]
    table = metrics.count_correct(verdicts, [1, 2])
    assert table["descriptive.question"].tolist() == [[1, 1], [0, 1]]
    assert table["explanatory.option"].tolist() == [[1, 2], [0, 0]]
    assert table["explanatory.question"].tolist() == [[0, 1], [0, 0]]
    assert table["multiple_choice.question"].sum(0).tolist() == [1, 2]
    assert table["overall.question"].sum(0).tolist() == [2, 4]


def test_without_public_answers_nothing_is_scored_but_all_is_submitted():
    choices = [{"choice_id": 0}, {"choice_id": 1}]
    hidden = predictions.Prediction(
        9, {"question_id": 3, "question_type": "predictive", "choices": choices}, [True, False]
    )
    result = metrics.compute_accuracy({3: [hidden]}, 3, draws=3)
    assert all(
        cell["count"] == 0 and cell["accuracy"] is None for cell in result["accuracy"].values()
    )
    given = [{"choice_id": 0, "answer": "correct"}, {"choice_id": 1, "answer": "wrong"}]
    assert submission.build_submission([hidden]) == [
        {"scene_index": 9, "questions": [{"question_id": 3, "choices": given}]}
    ]


def test_majority_and_chance():
    def descriptive(answer, kind):
        return {
            "question_id": 0,
            "question_type": "descriptive",
            "question_subtype": kind,
            "answer": answer,
        }

    train = [descriptive("2", "count"), descriptive("2", "count"), descriptive("no", "exist")]
    options = [{"choice_id": i, "answer": a} for i, a in enumerate(["wrong", "wrong", "correct"])]
    choice = {"question_id": 1, "question_type": "counterfactual", "choices": options}
    scored = [predictions.Prediction(1, q, "") for q in (descriptive("no", "exist"), choice)]
    excluded = predictions.Prediction(1, choice, [], excluded=True)
    found = baselines.baseline_accuracy([*train, choice], [*scored, excluded])
    assert found["majority"]["descriptive.question"] == 0.0  # "2" to everything
    assert found["majority_by_kind"]["descriptive.question"] == 1.0
    assert found["majority_by_kind"]["counterfactual.option"] == pytest.approx(2 / 3)
    assert (
        found["chance"]["descriptive.question"] == 0.5
        and found["chance"]["counterfactual.question"] == 0.125
    )
    assert found["chance"]["predictive.option"] is None


def test_answers_of_a_model_on_shards(world):
    torch.manual_seed(0)
    aloe = Aloe(
        AloeConfig(
            slots=SLOTS, slot_dim=DIM, frames=4, width=16, depth=1, heads=2, mlp_dim=16, head_dim=8
        )
    )
    source = InMemoryQuestions(world, "val", frames=4, stride=5, eval_start=7)
    by_start = {}
    for start in (3, 7):
        source.sampling.eval_start = start
        by_start[start] = predict_answers(aloe, source, batch_size=5)
    again = predict_answers(aloe, source, batch_size=24)
    assert [v.answer for v in again] == [v.answer for v in by_start[7]]  # the batch changes nothing
    result = metrics.compute_accuracy(by_start, 3, draws=10)
    accuracy = result["accuracy"]
    assert (
        accuracy["overall.question"]["count"] == 6 * 4
        and accuracy["explanatory.option"]["count"] == 6 * 3
    )
    assert accuracy["descriptive.question"]["correct"] == sum(
        v.correct() == [True] for v in by_start[3] if isinstance(v.answer, str)
    )
    assert result["videos"]["scenes"] == [*range(100, 106)] and result["starts"][
        "first_frames"
    ] == [3, 7]
    assert np.array(result["videos"]["counts"]["overall.question"]).sum(0)[1] == 24
    raw = {
        (sample.questions["scene_index"], question["question_id"]): question
        for sample in read_split(world, "val", ("questions.json",))
        for question in sample.questions["questions"]
    }
    for v in by_start[3]:
        original = raw[v.scene, v.question["question_id"]]
        assert v.question.get("answer") == original.get("answer")
        assert [c["answer"] for c in v.question.get("choices", [])] == [
            c["answer"] for c in original.get("choices", [])
        ]
    train = baselines.read_answered_questions(world, "train")
    asked = [predictions.Prediction(scene, question, "") for (scene, _), question in raw.items()]
    assert baselines.baseline_accuracy(train, by_start[3]) == baselines.baseline_accuracy(
        train, asked
    )
    sent = submission.build_submission(by_start[3])
    assert [len(scene["questions"]) for scene in sent] == [4] * 6 and json.dumps(
        [result, sent], allow_nan=False
    )


def test_bootstrap_brackets_the_pooled_mean_and_is_seeded():
    values = np.stack([np.arange(50) % 3, np.full(50, 3)], axis=-1)[:, None]
    low, high = bootstrap(values, pooled_mean, 200, 1)
    assert low[0] < pooled_mean(values)[0] < high[0]
    assert np.array_equal(bootstrap(values, pooled_mean, 200, 1), (low, high))
