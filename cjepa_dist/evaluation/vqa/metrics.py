"""VQA accuracy by question type, per option and per question, with intervals over videos.

    predictions ──count_correct──> (correct, count) by video, group ──bootstrap──> accuracy, 95 %

A question counts as correct if all of its options are. "overall" pools the questions of all types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.evaluation.bootstrap import bootstrap, pooled_mean
from cjepa_dist.evaluation.vqa.predictions import Prediction

CHOICE_TYPES = QUESTION_TYPES[1:]  # multiple choice
# What an accuracy is over: the question types pooled, and whether it counts options or questions.
QUESTION_GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "overall.question": (QUESTION_TYPES, "question"),
    "descriptive.question": (("descriptive",), "question"),
    "multiple_choice.option": (CHOICE_TYPES, "option"),
    "multiple_choice.question": (CHOICE_TYPES, "question"),
    **{
        f"{kind}.{unit}": ((kind,), unit)
        for kind in CHOICE_TYPES
        for unit in ("option", "question")
    },
}


def count_correct(
    predictions: Iterable[Prediction], scenes: Sequence[int]
) -> dict[str, np.ndarray]:
    """{group: (V, 2) int64 of (correct, count) per video}, videos in the order of `scenes`.

    Predictions that are not scored are skipped.
    """
    video = {scene: i for i, scene in enumerate(scenes)}
    counts = {group: np.zeros((len(scenes), 2), dtype=np.int64) for group in QUESTION_GROUPS}
    for prediction in predictions:
        correct = prediction.correct()
        if correct is None:
            continue
        for group, (types, unit) in QUESTION_GROUPS.items():
            if prediction.question["question_type"] in types:
                counts[group][video[prediction.scene]] += (
                    (sum(correct), len(correct)) if unit == "option" else (all(correct), 1)
                )
    return counts


def compute_accuracy(
    predictions: dict[int, list[Prediction]], main_start: int, *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Accuracies with intervals at `main_start`, and their mean over all starts, for JSON.

    `predictions` maps a start (the first sampled frame) to the answers to the same questions. Also
    in the result: counts per video, from which runs are compared, and the number of excluded
    questions. `accuracy` is None where no question is scored.
    """
    scenes = sorted({prediction.scene for prediction in predictions[main_start]})
    counts = {start: count_correct(answers, scenes) for start, answers in predictions.items()}
    main = counts[main_start]
    stacked = np.stack([main[group] for group in QUESTION_GROUPS], axis=1)
    low, high = bootstrap(stacked, pooled_mean, draws, seed)
    accuracy = {}
    for g, group in enumerate(QUESTION_GROUPS):
        correct, count = (int(n) for n in stacked[:, g].sum(0))
        interval = [float(low[g]), float(high[g])] if count else None
        accuracy[group] = {
            "accuracy": correct / count if count else None,
            "ci": interval,
            "correct": correct,
            "count": count,
        }
    starts = {
        group: mean_std_min_max(
            [float(pooled_mean(counts[start][group])) for start in sorted(counts)]
        )
        for group in QUESTION_GROUPS
        if accuracy[group]["count"]
    }
    return {
        "start": main_start,
        "accuracy": accuracy,
        "excluded_questions": sum(answer.excluded for answer in predictions[main_start]),
        "starts": {"first_frames": sorted(counts), "groups": starts},
        "videos": {
            "scenes": scenes,
            "counts": {group: main[group].tolist() for group in QUESTION_GROUPS},
        },
    }


def mean_std_min_max(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
    }
