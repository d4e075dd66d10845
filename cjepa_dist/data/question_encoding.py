"""questions.json -> columns: a row of words and a label for each descriptive question and for each choice of the others.

{questions: [{question, question_type, answer | choices}]} ──Rows.add──> lists, one entry a question or a row ──> QuestionSource
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.clevrer.vocabulary import (
    ANSWERS,
    CHOICE_WORDS,
    PAD,
    QUESTION_WORDS,
    TYPES,
    WORDS,
    encode,
)
from cjepa_dist.errors import UserError

CORRECT = {"correct": 1, "wrong": 0}


class EncodedQuestions:
    """Columns of all questions of a split; `place` is for messages."""

    def __init__(self, folder: str, split: str) -> None:
        self.place = f"{folder}, split {split!r}"
        self.type: list[str] = []
        self.subtype: list[str] = []
        self.scene: list[int] = []
        self.question_id: list[int] = []
        self.video: list[int] = []
        self.first_row: list[int] = []
        self.choice_id: list[int] = []
        self.label: list[int] = []
        self.words = bytearray()

    def add(self, video: int, content: dict[str, Any] | None, scene: int) -> None:
        """The questions of a video, if it has some; `scene` where they do not say it."""
        content = content or {}
        scene = content.get("scene_index", scene)
        for question in content.get("questions", ()):
            name = f"question {question.get('question_id')} of scene {scene} ({self.place})"
            try:
                self._add(video, scene, question)
            except (UserError, KeyError, TypeError, AttributeError) as error:
                reason = (
                    str(error)
                    if isinstance(error, UserError)
                    else f"lacks {error} or is not as CLEVRER's"
                )
                raise UserError(f"{name}: {reason}") from error

    def _add(self, video: int, scene: int, question: dict[str, Any]) -> None:
        kind = question["question_type"]
        if kind not in TYPES:
            raise UserError(f"unknown question type {kind!r}; CLEVRER has {', '.join(TYPES)}")
        self.type.append(kind)
        self.subtype.append(question.get("question_subtype", ""))
        self.scene.append(scene)
        self.question_id.append(question["question_id"])
        self.video.append(video)
        self.first_row.append(len(self.label))
        if kind == "descriptive":
            self._row(question["question"], "", -1, _look_up(ANSWERS, question.get("answer")))
            return
        if not question["choices"]:
            raise UserError("has no choices")
        for choice in question["choices"]:
            self._row(
                question["question"],
                choice["choice"],
                choice["choice_id"],
                _look_up(CORRECT, choice.get("answer")),
            )

    def _row(self, question: str, choice: str, choice_id: int, label: int) -> None:
        self.words += encode(question, QUESTION_WORDS)
        self.words += encode(choice, CHOICE_WORDS) if choice else bytes(CHOICE_WORDS)
        self.choice_id.append(choice_id)
        self.label.append(label)

    def labelled(self) -> bool:
        """Whether every question has its answer. UserError where some have and some have not."""
        unknown = [i for i, label in enumerate(self.label) if label < 0]
        if unknown and len(unknown) < len(self.label):
            question = int(np.searchsorted(self.first_row, unknown[0], side="right")) - 1
            raise UserError(
                f"question {self.question_id[question]} of scene {self.scene[question]} ({self.place}) has no answer, others have; "
                "give all answers or none"
            )
        return not unknown


def remove_negation(words: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (R, 32) uint8 and labels (R,) of the same questions without "not": right options are then the wrong ones.

    With half of the questions negated, no word of an option and nothing in the video says anything of its label before "not" is read as
    well: a parity, on which training stands still. Without it the meaning of options is learned first.
    """
    words, label = words.copy(), label.copy()
    rows, place = np.nonzero(words[:, :QUESTION_WORDS] == WORDS["not"])
    for row, at in zip(rows, place):
        words[row, at : QUESTION_WORDS - 1] = words[row, at + 1 : QUESTION_WORDS]
    words[rows, QUESTION_WORDS - 1] = PAD
    label[rows] = np.where(label[rows] < 0, -1, 1 - label[rows])
    return words, label


def _look_up(table: dict[str, int], answer: str | None) -> int:
    """The label of an answer; -1 for none."""
    if answer is None:
        return -1
    if answer not in table or answer == "PAD":
        raise UserError(
            f"unknown answer {answer!r}; it must be one of {', '.join(sorted(set(table) - {'PAD'}))}"
        )
    return table[answer]
