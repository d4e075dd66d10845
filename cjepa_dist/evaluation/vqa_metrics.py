"""Accuracy by question type, with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cjepa_dist.evaluation.bootstrap import bootstrap, ratio
from cjepa_dist.evaluation.verdicts import Question, Verdict
from cjepa_dist.evaluation.vqa import GROUPS

CHOICE_TYPES = ("explanatory", "predictive", "counterfactual")

TYPES = ("descriptive", *CHOICE_TYPES)


def counts(verdicts: Iterable[Verdict], scenes: Sequence[int]) -> dict[str, np.ndarray]:
    """{group: (V, 2) int64 of (correct, count) by video, in the order of `scenes`}; unanswerable questions are left out."""
    row = {scene: i for i, scene in enumerate(scenes)}
    table = {group: np.zeros((len(scenes), 2), dtype=np.int64) for group in GROUPS}
    for verdict in verdicts:
        right = verdict.right()
        if right is None:
            continue
        for group, (kinds, unit) in GROUPS.items():
            if verdict.question["question_type"] in kinds:
                table[group][row[verdict.scene]] += (
                    (sum(right), len(right)) if unit == "option" else (all(right), 1)
                )
    return table


def evaluate_vqa(
    by_start: dict[int, list[Verdict]], main: int, *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Accuracies at start `main` with intervals, mean and spread over all given starts, counts by video, and how many questions were
    left out of all of them, as a plain dict.

    `by_start` maps a start (first sampled frame) to the verdicts on the same questions. `accuracy` is None where nothing was answerable.
    """
    scenes = sorted({verdict.scene for verdict in by_start[main]})
    tables = {start: counts(verdicts, scenes) for start, verdicts in by_start.items()}
    names, stacked = list(GROUPS), np.stack([tables[main][group] for group in GROUPS], axis=1)
    low, high = bootstrap(stacked, ratio, draws, seed)
    accuracy = {}
    for g, group in enumerate(names):
        correct, count = (int(n) for n in stacked[:, g].sum(0))
        interval = [float(low[g]), float(high[g])] if count else None
        accuracy[group] = {
            "accuracy": correct / count if count else None,
            "ci": interval,
            "correct": correct,
            "count": count,
        }
    starts = {
        group: spread([float(ratio(tables[start][group])) for start in sorted(tables)])
        for group in names
        if accuracy[group]["count"]
    }
    return {
        "start": main,
        "accuracy": accuracy,
        "left_out": sum(verdict.left_out for verdict in by_start[main]),
        "starts": {"first_frames": sorted(tables), "groups": starts},
        "videos": {
            "scenes": scenes,
            "counts": {group: tables[main][group].tolist() for group in names},
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": min(values),
        "max": max(values),
    }


def majority(
    train: Iterable[tuple[int, Question]], scored: Iterable[tuple[int, Question]]
) -> dict[str, dict[str, float | None]]:
    """Accuracy without looking, by group: {"majority": one answer to all, "majority_by_kind": one to each kind of question, "chance"}.

    The most frequent answers are those of `train`. Kinds of descriptive questions are what they ask (count, exist, query_color, ...), of
    the others their type. Chance: uniform over the answers seen in `train`; an option 1/2; a question 2^-options.
    """
    all_answers: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    options: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in train:
        if "choices" in question:
            for choice in question["choices"]:
                options[question["question_type"]][choice["answer"]] += 1
        else:
            all_answers[question["answer"]] += 1
            by_kind[kind_of(question)][question["answer"]] += 1
    pooled = sum(options.values(), Counter())

    def blind(question: Question, kinds: bool) -> str | list[bool]:
        if "choices" in question:
            label = top((options[question["question_type"]] if kinds else pooled) or pooled)
            return [label == "correct"] * len(question["choices"])
        return top((by_kind[kind_of(question)] if kinds else all_answers) or all_answers)

    questions = list(scored)
    scenes = sorted({scene for scene, _ in questions})
    result: dict[str, dict[str, float | None]] = {}
    for name, kinds in (("majority", False), ("majority_by_kind", True)):
        table = counts(
            (Verdict(scene, question, blind(question, kinds)) for scene, question in questions),
            scenes,
        )
        result[name] = {group: fraction(*table[group].sum(0)) for group in GROUPS}
    hits: dict[str, list[float]] = {group: [] for group in GROUPS}
    for _, question in questions:
        odds = (
            0.5 ** len(question["choices"])
            if "choices" in question
            else 1 / max(1, len(all_answers))
        )
        for group, (types, unit) in GROUPS.items():
            if question["question_type"] in types:
                hits[group] += [0.5] * len(question["choices"]) if unit == "option" else [odds]
    result["chance"] = {group: fraction(sum(values), len(values)) for group, values in hits.items()}
    return result


def kind_of(question: Question) -> str:
    """What a descriptive question asks: its subtype, else the last step of its program, else its first two words."""
    program = question.get("program") or []
    return str(
        question.get("question_subtype")
        or (program[-1] if program else " ".join(question["question"].split()[:2]))
    )


def top(answers: Counter[str]) -> str:
    """The most frequent answer, the first in the alphabet among equals; "" if there is none."""
    return min(answers, key=lambda word: (-answers[word], word), default="")


def fraction(correct: float, count: float) -> float | None:
    return float(correct) / float(count) if count else None
