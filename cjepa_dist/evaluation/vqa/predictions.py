"""An answer to a question, and whether it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Question = dict[str, Any]


@dataclass
class Prediction:
    """The answer to a question: a word (descriptive), or a bool per choice (True = "correct").

    `excluded`: the submission needs an answer, but no accuracy counts it, because no slot holds the
    object that the question removes (`data/counterfactual_worlds.py`).
    """

    scene: int
    question: Question  # with the fields of CLEVRER's questions.json
    answer: str | list[bool]
    excluded: bool = False

    def is_scored(self) -> bool:
        """Whether an accuracy counts it: the correct answer is public, and it is not excluded."""
        return not self.excluded and has_answer(self.question)

    def correct(self) -> list[bool] | None:
        """One bool per choice, a single one for a descriptive question; None if not scored."""
        if not self.is_scored():
            return None
        if isinstance(self.answer, str):
            return [self.answer == self.question["answer"]]
        return [
            answer == (choice["answer"] == "correct")
            for answer, choice in zip(self.answer, self.question["choices"])
        ]


def has_answer(question: Question) -> bool:
    """Whether the correct answer is public: CLEVRER's test split has none."""
    return all("answer" in choice for choice in question.get("choices", [question]))
