"""The file that the CLEVRER server takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cjepa_dist.evaluation.verdicts import Verdict


def submission(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The file that the CLEVRER server takes, scenes in order."""
    scenes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for verdict in verdicts:
        entry: dict[str, Any] = {"question_id": verdict.question["question_id"]}
        if isinstance(verdict.given, str):
            entry["answer"] = verdict.given
        else:
            entry["choices"] = [
                {"choice_id": choice["choice_id"], "answer": "correct" if given else "wrong"}
                for choice, given in zip(verdict.question["choices"], verdict.given)
            ]
        scenes[verdict.scene].append(entry)
    return [
        {"scene_index": scene, "questions": sorted(scenes[scene], key=lambda q: q["question_id"])}
        for scene in sorted(scenes)
    ]
