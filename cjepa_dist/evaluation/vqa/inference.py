"""ALOE inference: one prediction for every question of a split.

    QuestionDataset ──get_batch──> tokens, slots ──ALOE──> logits ──> Prediction per question
                                                                           │
            vqa_metrics: accuracy <──┬── vqa_baselines: majority, chance <──┴──> submission

A descriptive question gets the word with the largest logit, a choice "correct" where its logit is
positive. Every question is answered exactly once: no batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import ANSWER_NAMES
from cjepa_dist.data.questions import QuestionDataset
from cjepa_dist.evaluation.vqa.predictions import Prediction, Question
from cjepa_dist.models.aloe import Aloe


@torch.no_grad()
def predict_answers(
    aloe: Aloe,
    dataset: QuestionDataset,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Predictions for every question of a dataset, in its order.

    `progress(n)` is called after each batch, with the number of its questions.
    """
    predictions: list[Prediction] = []
    device = next(aloe.eval().parameters()).device
    for begin in range(0, len(dataset), batch_size):
        ids = np.arange(begin, min(begin + batch_size, len(dataset)), dtype=np.int64)
        batch = dataset.get_batch(ids, ids)
        inputs = ("slots", "tokens", "padding", "is_choice", "row_view")
        slots, tokens, padding, is_choice, view = (batch[name].to(device) for name in inputs)
        answer_logits, choice_logits = aloe(slots, tokens, padding, is_choice, row_view=view)
        best, positive = answer_logits.argmax(-1).tolist(), (choice_logits > 0).tolist()
        first_row = int(dataset.rows(begin)[0])
        for i in ids.tolist():
            question, rows = question_record(dataset, i), dataset.rows(i) - first_row
            answer: str | list[bool]
            if "choices" in question:
                answer = [positive[row] for row in rows]
            else:
                answer = ANSWER_NAMES[best[rows[0]]]
            scene, excluded = int(dataset.scene[i]), bool(dataset.lacks_world[i])
            predictions.append(Prediction(scene, question, answer, excluded))
        if progress is not None:
            progress(len(ids))
    return predictions


def question_record(dataset: QuestionDataset, index: int) -> Question:
    """The fields of a question that scoring needs, named as in CLEVRER's questions.json.

    Answers are there only where they are public.
    """
    question: Question = {
        "question_id": int(dataset.question_id[index]),
        "question_type": str(dataset.type[index]),
    }
    rows = dataset.rows(index)
    labels = [int(label) for label in dataset.label[rows]]
    if not dataset.is_choice[index]:
        question["question_subtype"] = str(dataset.subtype[index])
        return question | ({"answer": ANSWER_NAMES[labels[0]]} if labels[0] >= 0 else {})
    choices: list[dict[str, Any]] = []
    for choice_id, label in zip(dataset.choice_id[rows], labels):
        answer = {"answer": "correct" if label else "wrong"} if label >= 0 else {}
        choices.append({"choice_id": int(choice_id), **answer})
    return question | {"choices": choices}
