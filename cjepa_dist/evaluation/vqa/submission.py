"""The file of answers that the CLEVRER evaluation server accepts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cjepa_dist.evaluation.vqa.predictions import Prediction


def build_submission(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """One entry per scene, with the answers to its questions; scenes and questions in order."""
    scenes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        entry: dict[str, Any] = {"question_id": prediction.question["question_id"]}
        if isinstance(prediction.answer, str):
            entry["answer"] = prediction.answer
        else:
            entry["choices"] = [
                {"choice_id": choice["choice_id"], "answer": "correct" if answer else "wrong"}
                for choice, answer in zip(prediction.question["choices"], prediction.answer)
            ]
        scenes[prediction.scene].append(entry)
    return [
        {"scene_index": scene, "questions": sorted(scenes[scene], key=lambda q: q["question_id"])}
        for scene in sorted(scenes)
    ]
