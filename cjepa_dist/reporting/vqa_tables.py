"""The report's VQA tables: accuracies, differences between runs, and published numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.vqa.metrics import QUESTION_GROUPS
from cjepa_dist.reporting.published import PUBLISHED
from cjepa_dist.reporting.tables import Results, header, row


def accuracy_table(results: Results, heading: str = "VQA") -> list[str]:
    """Accuracies at the main start, their mean over starts, and baselines without the video."""
    if not results:
        return []
    lines = [
        f"## {heading}\n",
        "Accuracy in percent [95 % interval over videos]; in brackets mean ± standard deviation "
        "over all first frames.",
        "Majority: the most frequent training answer to that kind of question. Chance: uniform.\n",
    ]
    titles = [run_title(name, result) for name, result in results.items()]
    lines += header("", *titles, "majority", "chance", "count")
    baselines = next(iter(results.values()))["baselines"]
    for group in QUESTION_GROUPS:
        cells = [result["accuracy"][group] for result in results.values()]
        if not any(cell["count"] for cell in cells):
            continue
        accuracies = [
            format_accuracy(cell, result["starts"]["groups"].get(group))
            for cell, result in zip(cells, results.values())
        ]
        names = ("majority_by_kind", "chance")
        guesses = [format_percent(baselines[name][group]) for name in names]
        lines.append(row(group_label(group), *accuracies, *guesses, cells[0]["count"]))
    return [*lines, ""]


def run_title(name: str, result: dict[str, Any]) -> str:
    """An ALOE run's name, and in brackets how its protocol differs from the published one."""
    notes = []
    if result.get("protocol") == "counterfactual":
        notes.append("counterfactual")
    if result.get("blind"):
        notes.append("blind")
    if excluded := result.get("excluded_questions", 0):
        notes.append(f"{excluded} questions excluded")
    return f"{name} ({', '.join(notes)})" if notes else name


def format_accuracy(cell: dict[str, Any], starts: dict[str, float] | None) -> str:
    if cell["accuracy"] is None:
        return "-"
    low, high = (format_percent(value) for value in cell["ci"])
    over_starts = f" ({format_percent_mean_std(starts)})" if starts else ""
    return f"{format_percent(cell['accuracy'])} [{low}, {high}]{over_starts}"


def difference_table(results: Results, *, draws: int, seed: int) -> list[str]:
    """Each run minus the first, in points, paired by video: the same videos are drawn for both."""
    if len(results) < 2:
        return []
    (first, base), *others = results.items()
    lines = [
        f"## Differences against {first}\n",
        "Points [95 % interval, bootstrap over the same videos for both runs]. The interval does "
        "not include the variation between seeds, so no difference of two single runs is marked.\n",
        *header("", *(name for name, _ in others)),
    ]
    for group in QUESTION_GROUPS:
        if base["accuracy"][group]["count"]:
            lines.append(
                row(
                    group_label(group),
                    *(accuracy_difference(base, other, group, draws, seed) for _, other in others),
                )
            )
    return [*lines, ""]


def accuracy_difference(
    base: dict[str, Any], other: dict[str, Any], group: str, draws: int, seed: int
) -> str:
    """Points by which `other` is above `base`, with an interval.

    Never marked as significant: two single runs differ by their seeds too.
    """
    if base["videos"]["scenes"] != other["videos"]["scenes"]:
        return "other videos"
    sides = [side["videos"]["counts"][group] for side in (base, other)]
    values = np.array(sides, dtype=np.float64).transpose(1, 0, 2)  # (V, 2 runs, correct and count)
    if not values[..., 1].sum(0).all():
        return "-"

    def points(sample: np.ndarray) -> float:
        (base_correct, base_count), (other_correct, other_count) = sample.sum(0)
        if not (base_count and other_count):
            return float("nan")
        return float(100 * (other_correct / other_count - base_correct / base_count))

    low, high = bootstrap(values, points, draws, seed)
    return f"{points(values):+.1f} [{float(low):+.1f}, {float(high):+.1f}]"


def published_table(results: Results) -> list[str]:
    """Published accuracies per question on CLEVRER, below ours."""
    if not results:
        return []
    lines = [
        "## Published numbers, per question\n",
        "On real CLEVRER. Ours are comparable only if the data are real CLEVRER too: the simulated "
        "world differs from it.\n",
        *header("", "split", *QUESTION_TYPES, "note"),
    ]
    for name, result in results.items():
        accuracy = result["accuracy"]
        cells = [
            format_percent(accuracy[f"{kind}.question"]["accuracy"]) for kind in QUESTION_TYPES
        ]
        lines.append(row(f"**{name}** (ours)", result["split"], *cells, f"step {result['step']}"))
    for entry in PUBLISHED:
        option = (None, *(entry.option or (None, None, None)))
        cells = [
            f"{q:.1f}" + (f" (per option {o:.1f})" if o is not None else "")
            for q, o in zip(entry.question, option)
        ]
        notes = [entry.note] if entry.note else []
        notes += [f"average {entry.average}"] if entry.average else []
        lines.append(row(entry.name, entry.split, *cells, "; ".join(notes)))
    return [*lines, ""]


def group_label(group: str) -> str:
    kind, unit = group.split(".")
    return kind.replace("_", " ") + ("" if kind in ("overall", "descriptive") else f", per {unit}")


def format_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def format_percent_mean_std(starts: dict[str, float]) -> str:
    return f"{format_percent(starts['mean'])} ± {format_percent(starts['std'])}"
