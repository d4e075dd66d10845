"""Accuracy of ALOE by question type, per option and per question, with intervals over videos; and the CLEVRER server's submission.

    for each start of the sampled frames:  source ──> logits of every row ──> one Verdict a question ──> Counts by video
    Counts ──> accuracy, 95 % interval;   Verdicts at the main start ──> submission JSON

Descriptive: arg max == label. Option: (logit > 0) == label. Question: all of its options right. Overall pools the questions of all types.
Counts are exact: each question once, none padded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import ANSWERS
from cjepa_dist.data.questions import Questions
from cjepa_dist.data.shards import read_split
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap, ratio
from cjepa_dist.models.aloe import Aloe

CHOICE_TYPES = ("explanatory", "predictive", "counterfactual")
TYPES = ("descriptive", *CHOICE_TYPES)
# What an accuracy is over: question types pooled, and whether the unit is an option or a question.
GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "overall.question": (TYPES, "question"),
    "descriptive.question": (("descriptive",), "question"),
    "multiple_choice.option": (CHOICE_TYPES, "option"),
    "multiple_choice.question": (CHOICE_TYPES, "question"),
    **{f"{kind}.{unit}": ((kind,), unit) for kind in CHOICE_TYPES for unit in ("option", "question")},
}
WORDS = {index: word for word, index in ANSWERS.items()}
Question = dict[str, Any]


@dataclass
class Verdict:
    """What was answered to a question: an answer (descriptive) or one bool per choice (True = "correct").

    `left_out`: it was answered for the submission only, since what it asks about is not known (`data/intervened.py`).
    """

    scene: int
    question: Question
    given: str | list[bool]
    left_out: bool = False

    def answerable(self) -> bool:
        """Whether the answer is public, and the question could be asked."""
        return not self.left_out and all("answer" in choice for choice in self.question.get("choices", [self.question]))

    def right(self) -> list[bool] | None:
        """Right or wrong by option (one entry for a descriptive question); None if the question is not answerable."""
        if not self.answerable():
            return None
        if isinstance(self.given, str):
            return [self.given == self.question["answer"]]
        return [given == (choice["answer"] == "correct") for given, choice in zip(self.given, self.question["choices"])]


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
                table[group][row[verdict.scene]] += (sum(right), len(right)) if unit == "option" else (all(right), 1)
    return table


@torch.no_grad()
def answer(aloe: Aloe, source: Questions, *, batch: int = 64, progress: Callable[[int], None] | None = None) -> list[Verdict]:
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
            verdicts.append(Verdict(int(source.scene[i]), question, given, bool(source.left_out[i])))
        if progress is not None:
            progress(len(ids))
    return verdicts


def question_of(source: Questions, index: int) -> Question:
    """What scoring needs of a question, named as in CLEVRER's JSON: type, ids, and the answers where they are public."""
    question: Question = {"question_id": int(source.question_id[index]), "question_type": str(source.type[index])}
    rows = source.rows(index)
    labels = [int(label) for label in source.label[rows]]
    if not source.is_choice[index]:
        return question | ({"answer": WORDS[labels[0]]} if labels[0] >= 0 else {})
    answers = [{"answer": "correct" if label else "wrong"} if label >= 0 else {} for label in labels]
    return question | {"choices": [{"choice_id": int(choice), **known} for choice, known in zip(source.choice_id[rows], answers)]}


def evaluate_vqa(by_start: dict[int, list[Verdict]], main: int, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
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
        accuracy[group] = {"accuracy": correct / count if count else None, "ci": interval, "correct": correct, "count": count}
    starts = {
        group: spread([float(ratio(tables[start][group])) for start in sorted(tables)]) for group in names if accuracy[group]["count"]
    }
    return {
        "start": main,
        "accuracy": accuracy,
        "left_out": sum(verdict.left_out for verdict in by_start[main]),
        "starts": {"first_frames": sorted(tables), "groups": starts},
        "videos": {"scenes": scenes, "counts": {group: tables[main][group].tolist() for group in names}},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "min": min(values), "max": max(values)}


def majority(train: Iterable[tuple[int, Question]], scored: Iterable[tuple[int, Question]]) -> dict[str, dict[str, float | None]]:
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
        table = counts((Verdict(scene, question, blind(question, kinds)) for scene, question in questions), scenes)
        result[name] = {group: fraction(*table[group].sum(0)) for group in GROUPS}
    hits: dict[str, list[float]] = {group: [] for group in GROUPS}
    for _, question in questions:
        odds = 0.5 ** len(question["choices"]) if "choices" in question else 1 / max(1, len(all_answers))
        for group, (types, unit) in GROUPS.items():
            if question["question_type"] in types:
                hits[group] += [0.5] * len(question["choices"]) if unit == "option" else [odds]
    result["chance"] = {group: fraction(sum(values), len(values)) for group, values in hits.items()}
    return result


def kind_of(question: Question) -> str:
    """What a descriptive question asks: its subtype, else the last step of its program, else its first two words."""
    program = question.get("program") or []
    return str(question.get("question_subtype") or (program[-1] if program else " ".join(question["question"].split()[:2])))


def top(answers: Counter[str]) -> str:
    """The most frequent answer, the first in the alphabet among equals; "" if there is none."""
    return min(answers, key=lambda word: (-answers[word], word), default="")


def fraction(correct: float, count: float) -> float | None:
    return float(correct) / float(count) if count else None


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
    return [{"scene_index": scene, "questions": sorted(scenes[scene], key=lambda q: q["question_id"])} for scene in sorted(scenes)]


def read_questions(data: str | Path, split: str) -> list[tuple[int, Question]]:
    """(scene, question) of a split in order, those with a public answer only. UserError if the data carry no questions."""
    found = []
    for sample in read_split(data, split, ("questions.json",)):
        if sample.questions is None:
            raise UserError(f"{data}, split {split!r}, key {sample.key}: has no questions.json; simulate or import the data with questions")
        scene = int(sample.questions["scene_index"])
        found += [(scene, question) for question in sample.questions["questions"] if Verdict(scene, question, []).answerable()]
    return found
