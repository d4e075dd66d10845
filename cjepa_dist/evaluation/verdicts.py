"""What was answered to a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Question = dict[str, Any]


@dataclass
class Verdict:
    """What was answered to a question: an answer (descriptive) or one bool per choice (True = "correct").

    `left_out`: it was answered for the submission only, since what it asks about is not known (`data/counterfactual_worlds.py`).
    """

    scene: int
    question: Question
    given: str | list[bool]
    left_out: bool = False

    def answerable(self) -> bool:
        """Whether the answer is public, and the question could be asked."""
        return not self.left_out and all(
            "answer" in choice for choice in self.question.get("choices", [self.question])
        )

    def right(self) -> list[bool] | None:
        """Right or wrong by option (one entry for a descriptive question); None if the question is not answerable."""
        if not self.answerable():
            return None
        if isinstance(self.given, str):
            return [self.given == self.question["answer"]]
        return [
            given == (choice["answer"] == "correct")
            for given, choice in zip(self.given, self.question["choices"])
        ]
