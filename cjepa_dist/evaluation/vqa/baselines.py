"""VQA accuracy without looking at the video: the most frequent answers, and chance.

questions of the train split ──> most frequent answers ──┐
questions of the scored split ───────────────────────────┴──count_correct──> accuracy by group
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cjepa_dist.clevrer.questions import question_kind
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.vqa.metrics import QUESTION_GROUPS, count_correct
from cjepa_dist.evaluation.vqa.predictions import Prediction, Question, has_answer


def read_answered_questions(data: str | Path, split: str) -> list[Question]:
    """The questions of a split that have a public answer, in order.

    Raises UserError where the data has no questions.
    """
    found = []
    for sample in read_split(data, split, ("questions.json",)):
        if sample.questions is None:
            raise UserError(
                f"{data}, split {split!r}, key {sample.key}: has no questions.json; simulate or "
                "import the data with questions"
            )
        found += [question for question in sample.questions["questions"] if has_answer(question)]
    return found


def baseline_accuracy(
    train: Iterable[Question], predictions: Iterable[Prediction]
) -> dict[str, dict[str, float | None]]:
    """Accuracy of {"majority", "majority_by_kind", "chance"} by group, on the scored `predictions`.

    Majority gives one answer to all questions, majority by kind one to each kind of question; both
    are the most frequent answers in `train`. The kind of a descriptive question is what it asks
    (count, exist, query_color, ...), that of the others their type. Chance is uniform over the
    answers in `train`; 1/2 for an option; 2^-options for a question with options.
    """
    all_answers: Counter[str] = Counter()
    answers_by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    labels_by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        if "choices" in question:
            for choice in question["choices"]:
                labels_by_type[question["question_type"]][choice["answer"]] += 1
        else:
            all_answers[question["answer"]] += 1
            answers_by_kind[question_kind(question)][question["answer"]] += 1
    all_labels = sum(labels_by_type.values(), Counter())

    def majority_answer(question: Question, by_kind: bool) -> str | list[bool]:
        if "choices" in question:
            labels = labels_by_type[question["question_type"]] if by_kind else all_labels
            return [most_frequent(labels or all_labels) == "correct"] * len(question["choices"])
        answers = answers_by_kind[question_kind(question)] if by_kind else all_answers
        return most_frequent(answers or all_answers)

    scored = [prediction for prediction in predictions if prediction.is_scored()]
    scenes = sorted({prediction.scene for prediction in scored})
    result: dict[str, dict[str, float | None]] = {}
    for name, by_kind in (("majority", False), ("majority_by_kind", True)):
        guesses = [replace(p, answer=majority_answer(p.question, by_kind)) for p in scored]
        counts = count_correct(guesses, scenes)
        result[name] = {group: safe_ratio(*counts[group].sum(0)) for group in QUESTION_GROUPS}
    chances: dict[str, list[float]] = {group: [] for group in QUESTION_GROUPS}
    for question in (prediction.question for prediction in scored):
        options = len(question.get("choices", ()))
        chance = 0.5**options if options else 1 / max(1, len(all_answers))
        for group, (types, unit) in QUESTION_GROUPS.items():
            if question["question_type"] in types:
                chances[group] += [0.5] * options if unit == "option" else [chance]
    result["chance"] = {
        group: safe_ratio(sum(values), len(values)) for group, values in chances.items()
    }
    return result


def most_frequent(answers: Counter[str]) -> str:
    """The most frequent answer, the first in the alphabet among equals; "" if there is none."""
    return min(answers, key=lambda word: (-answers[word], word), default="")


def safe_ratio(correct: float, count: float) -> float | None:
    return float(correct) / float(count) if count else None
