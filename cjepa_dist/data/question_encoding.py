"""questions.json -> columns: words and label of each descriptive question and of each choice.

{questions: [{question, question_type, answer | choices}]} ──EncodedQuestions.add──> lists,
one entry a question or a row ──> QuestionDataset
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.clevrer.questions import question_kind
from cjepa_dist.clevrer.vocabulary import (
    ANSWER_IDS,
    MAX_CHOICE_WORDS,
    MAX_QUESTION_WORDS,
    PAD,
    QUESTION_TYPES,
    WORD_IDS,
    encode_text,
)
from cjepa_dist.errors import ContentError, UserError

CHOICE_LABELS = {"correct": 1, "wrong": 0}


class EncodedQuestions:
    """Columns of all questions of a split, one entry a question or a row."""

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
                known = isinstance(error, UserError)
                reason = str(error) if known else f"lacks {error} or is not as CLEVRER's"
                raise ContentError(f"{name}: {reason}") from error

    def _add(self, video: int, scene: int, question: dict[str, Any]) -> None:
        kind = question["question_type"]
        if kind not in QUESTION_TYPES:
            raise UserError(
                f"unknown question type {kind!r}; CLEVRER has {', '.join(QUESTION_TYPES)}"
            )
        self.type.append(kind)
        self.subtype.append(question_kind(question) if kind == "descriptive" else "")
        self.scene.append(scene)
        self.question_id.append(question["question_id"])
        self.video.append(video)
        self.first_row.append(len(self.label))
        if kind == "descriptive":
            self._row(question["question"], "", -1, _look_up(ANSWER_IDS, question.get("answer")))
            return
        if not question["choices"]:
            raise UserError("has no choices")
        for choice in question["choices"]:
            self._row(
                question["question"],
                choice["choice"],
                choice["choice_id"],
                _look_up(CHOICE_LABELS, choice.get("answer")),
            )

    def _row(self, question: str, choice: str, choice_id: int, label: int) -> None:
        self.words += encode_text(question, MAX_QUESTION_WORDS)
        self.words += encode_text(choice, MAX_CHOICE_WORDS) if choice else bytes(MAX_CHOICE_WORDS)
        self.choice_id.append(choice_id)
        self.label.append(label)

    def labelled(self) -> bool:
        """Whether every question has its answer. UserError if only some have one."""
        unknown = [i for i, label in enumerate(self.label) if label < 0]
        if unknown and len(unknown) < len(self.label):
            question = int(np.searchsorted(self.first_row, unknown[0], side="right")) - 1
            raise ContentError(
                f"question {self.question_id[question]} of scene {self.scene[question]} "
                f"({self.place}) has no answer, others have; give all answers or none"
            )
        return not unknown


def remove_negation(words: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (R, 32) uint8 and labels (R,) of the same questions without "not".

    Removing "not" makes right options wrong and wrong ones right. When half of the questions are
    negated, an option's words and the video say nothing about its label unless "not" is read too:
    a parity, on which training makes no progress. Without "not" a model learns first what options
    mean.
    """
    words, label = words.copy(), label.copy()
    rows, places = np.nonzero(words[:, :MAX_QUESTION_WORDS] == WORD_IDS["not"])
    for row, at in zip(rows, places):
        words[row, at : MAX_QUESTION_WORDS - 1] = words[row, at + 1 : MAX_QUESTION_WORDS]
    words[rows, MAX_QUESTION_WORDS - 1] = PAD
    label[rows] = np.where(label[rows] < 0, -1, 1 - label[rows])
    return words, label


def _look_up(table: dict[str, int], answer: str | None) -> int:
    """The label of an answer; -1 for none."""
    if answer is None:
        return -1
    if answer not in table or answer == "PAD":
        known = ", ".join(sorted(set(table) - {"PAD"}))
        raise UserError(f"unknown answer {answer!r}; it must be one of {known}")
    return table[answer]
