"""Accuracy of ALOE by question type, per option and per question, with intervals over videos; and the CLEVRER server's submission.

    for each start of the sampled frames:  source ──> logits of every row ──> one Verdict a question ──> Counts by video
    Counts ──> accuracy, 95 % interval;   Verdicts at the main start ──> submission JSON

Descriptive: arg max == label. Option: (logit > 0) == label. Question: all of its options right. Overall pools the questions of all types.
Counts are exact: each question once, none padded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import ANSWERS
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.questions import QuestionBatches
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.verdicts import Question, Verdict
from cjepa_dist.evaluation.vqa_metrics import CHOICE_TYPES, TYPES
from cjepa_dist.models.aloe import Aloe

# What an accuracy is over: question types pooled, and whether the unit is an option or a question.
GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "overall.question": (TYPES, "question"),
    "descriptive.question": (("descriptive",), "question"),
    "multiple_choice.option": (CHOICE_TYPES, "option"),
    "multiple_choice.question": (CHOICE_TYPES, "question"),
    **{
        f"{kind}.{unit}": ((kind,), unit)
        for kind in CHOICE_TYPES
        for unit in ("option", "question")
    },
}

WORDS = {index: word for word, index in ANSWERS.items()}


@torch.no_grad()
def answer(
    aloe: Aloe,
    source: QuestionBatches,
    *,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Verdict]:
    """Verdicts on every question of a source, in its order. `progress(n)` is told how many more are done."""
    verdicts: list[Verdict] = []
    device = next(aloe.eval().parameters()).device
    for begin in range(0, len(source), batch):
        ids = np.arange(begin, min(begin + batch, len(source)), dtype=np.int64)
        sample = source.gather(ids, ids)
        inputs = ("slots", "tokens", "padding", "is_choice", "row_view")
        slots, tokens, padding, is_choice, view = (sample[name].to(device) for name in inputs)
        answers, choices = aloe(slots, tokens, padding, is_choice, row_view=view)
        best, positive = answers.argmax(-1).tolist(), (choices > 0).tolist()
        first = int(source.rows(begin)[0])
        for i in ids.tolist():
            question, rows = question_of(source, i), source.rows(i) - first
            given = [positive[r] for r in rows] if "choices" in question else WORDS[best[rows[0]]]
            verdicts.append(
                Verdict(int(source.scene[i]), question, given, bool(source.left_out[i]))
            )
        if progress is not None:
            progress(len(ids))
    return verdicts


def question_of(source: QuestionBatches, index: int) -> Question:
    """What scoring needs of a question, named as in CLEVRER's JSON: type, ids, and the answers where they are public."""
    question: Question = {
        "question_id": int(source.question_id[index]),
        "question_type": str(source.type[index]),
    }
    rows = source.rows(index)
    labels = [int(label) for label in source.label[rows]]
    if not source.is_choice[index]:
        return question | ({"answer": WORDS[labels[0]]} if labels[0] >= 0 else {})
    answers = [
        {"answer": "correct" if label else "wrong"} if label >= 0 else {} for label in labels
    ]
    return question | {
        "choices": [
            {"choice_id": int(choice), **known}
            for choice, known in zip(source.choice_id[rows], answers)
        ]
    }


def read_questions(data: str | Path, split: str) -> list[tuple[int, Question]]:
    """(scene, question) of a split in order, those with a public answer only. UserError if the data carry no questions."""
    found = []
    for sample in read_split(data, split, ("questions.json",)):
        if sample.questions is None:
            raise UserError(
                f"{data}, split {split!r}, key {sample.key}: has no questions.json; simulate or import the data with questions"
            )
        scene = int(sample.questions["scene_index"])
        found += [
            (scene, question)
            for question in sample.questions["questions"]
            if Verdict(scene, question, []).answerable()
        ]
    return found
