"""Plots of answers: accuracy by type of question, question programs, and published numbers."""

from __future__ import annotations

from typing import Any

from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.reporting.plots.intervals import Interval, Marks, interval_chart
from cjepa_dist.reporting.plots.runs import drawn_runs
from cjepa_dist.reporting.plots.style import (
    INK,
    MARKERS,
    MUTED,
    SERIES,
    Plot,
    add_legend,
    new_figure,
    shorten,
)
from cjepa_dist.reporting.published import PUBLISHED
from cjepa_dist.reporting.tables import Results
from cjepa_dist.reporting.vqa_tables import run_title

UNKNOWN = float("nan")
GROUPS = {
    "descriptive.question": "descriptive",
    "explanatory.option": "explanatory, option",
    "predictive.option": "predictive, option",
    "counterfactual.option": "counterfactual, option",
}
# How the worlds were made that question programs read, and what that is a control for.
ROLLOUTS = {
    "factual": "nothing else changes",
    "free": "everything predicted anew",
    "truth": "the simulator's own worlds",
}
CONTROL_ROLLOUTS = ("factual", "free", "truth")


def percent(cell: dict[str, Any] | None) -> Interval:
    """(value, low, high) of a cell of accuracies, in percent."""
    if not cell or cell["accuracy"] is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    low, high = cell["ci"] or (UNKNOWN, UNKNOWN)
    return 100 * cell["accuracy"], 100 * low, 100 * high


def guess(value: float | None) -> Interval:
    return (UNKNOWN if value is None else 100 * value), UNKNOWN, UNKNOWN


def accuracy_plot(vqa: Results) -> Plot | None:
    """Accuracy by type of question, beside the blind ALOE, the majority answer and chance."""
    seeing = {name: result for name, result in vqa.items() if not result.get("blind")}
    blind = {name: result for name, result in vqa.items() if result.get("blind")}
    drawn, note = drawn_runs(seeing)
    shown = drawn | dict(list(drawn_runs(blind)[0].items())[:1])
    if not shown:
        return None
    baselines = next(iter(shown.values()))["baselines"]
    groups = [g for g in GROUPS if any(r["accuracy"][g]["count"] for r in shown.values())]
    marks = [
        Marks(
            "blind: slots of another video" if result.get("blind") else run_title(name, result),
            [percent(result["accuracy"][group]) for group in groups],
            control=bool(result.get("blind")),
        )
        for name, result in shown.items()
    ]
    for name, key in (("most frequent answer", "majority_by_kind"), ("chance", "chance")):
        marks.append(Marks(name, [guess(baselines[key][g]) for g in groups], control=True))
    rows = [GROUPS[group] for group in groups]
    figure = interval_chart(rows, marks, "right answers, percent", limits=(0, 100))
    return Plot(
        "accuracy",
        "Questions, answered by ALOE from the slots",
        figure,
        describe("Accuracy in percent.", rows, marks),
        "Options of multiple-choice questions are counted one by one. Grey are the controls: the"
        " same ALOE on the slots of other videos (if it was trained), the most frequent answer of"
        f" the training set, and guessing. Bars are 95 % intervals over videos.{note}",
    )


def describe(what: str, rows: list[str], marks: list[Marks]) -> str:
    values = "; ".join(
        f"{row}: " + ", ".join(f"{mark.label} {mark.values[r][0]:.1f}" for mark in marks)
        for r, row in enumerate(rows)
    )
    return f"{what} {values}."


def program_plot(symbolic: Results) -> Plot | None:
    """Counterfactual options by question programs, a row for each way to make the worlds."""
    group = "counterfactual.option"
    found = {n: r for n, r in symbolic.items() if r["accuracy"][group]["accuracy"] is not None}
    # The controls depend on the data and the decoder alone, except `free`: one of each is drawn.
    models = {n: r for n, r in found.items() if r["rollout"] not in CONTROL_ROLLOUTS}
    drawn, note = drawn_runs(models)
    controls: dict[str, Any] = {}
    for result in found.values():
        if result["rollout"] in CONTROL_ROLLOUTS:
            controls.setdefault(result["rollout"], result)
    if not drawn and not controls:
        return None
    rows, values = [], []
    for name, result in drawn.items():
        rows.append(name.rpartition(": ")[0] if len(drawn) > 1 else "the model's worlds")
        values.append(percent(result["accuracy"][group]))
    for name, result in controls.items():
        rows.append(ROLLOUTS[name])
        values.append(percent(result["accuracy"][group]))
    baselines = next(iter(found.values()))["baselines"]
    chance = 100 * (baselines["chance"][group] or 0.5)
    marks = [Marks("right options", values)]
    shaded = range(len(drawn), len(rows))
    figure = interval_chart(rows, marks, "right options, percent", shaded=shaded)
    axis = figure.axes[0]
    axis.axvline(chance, color=INK, linewidth=0.9)
    axis.set_xlim(left=min(chance - 4, axis.get_xlim()[0]))
    return Plot(
        "programs",
        "What would have happened, answered by programs",
        figure,
        describe(f"Right counterfactual options, percent; chance {chance:.0f}.", rows, marks),
        "The question's own program reads collisions from the world that the model predicts without"
        " the object; no network answers. Shaded are the controls, such as the observed video in"
        " which only the object is gone. The line is chance; bars are 95 % intervals over"
        f" videos.{note}",
    )


def published_plot(vqa: Results, simulated: bool) -> Plot | None:
    """Published accuracies per question by type, and ours."""
    drawn, note = drawn_runs({n: r for n, r in vqa.items() if not r.get("blind")}, most=3)
    if not drawn:
        return None
    figure, axis = new_figure(3.6)
    y = list(range(len(QUESTION_TYPES)))
    for number, (split, marker) in enumerate((("val", "o"), ("test", "x"))):
        for offset, row in enumerate(row for row in PUBLISHED if row.split == split):
            axis.plot(
                row.question,
                [row_y + 0.16 + 0.2 * number for row_y in y],
                linestyle="none",
                marker=marker,
                clip_on=False,
                color=MUTED,
                alpha=0.75,
                label=f"published, {'validation' if split == 'val' else 'test'} split"
                if not offset
                else None,
            )
    for number, (name, result) in enumerate(drawn.items()):
        values = [percent(result["accuracy"][f"{kind}.question"])[0] for kind in QUESTION_TYPES]
        axis.plot(
            values,
            [row_y - 0.04 - 0.17 * number for row_y in y],
            linestyle="none",
            marker=MARKERS[number],
            markersize=7.5,
            clip_on=False,
            color=SERIES[number],
            label=shorten(f"ours: {name}"),
        )
    axis.set_yticks(y, QUESTION_TYPES)
    axis.set_ylim(len(y) - 0.5, -0.55)
    axis.set_xlim(0, 100)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("right questions, percent")
    add_legend(figure, axis, columns=1)
    ours = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{kind} {percent(result['accuracy'][f'{kind}.question'])[0]:.1f}"
            for kind in QUESTION_TYPES
        )
        for name, result in drawn.items()
    )
    warning = (
        "Not comparable: ours are on simulated videos, with other questions and other slots."
        if simulated
        else "Comparable where the split and the slots are the same."
    )
    return Plot(
        "published",
        "Published numbers on CLEVRER, and ours",
        figure,
        f"{len(PUBLISHED)} published rows in grey. Ours, percent: {ours}.",
        f"{warning} A multiple-choice question counts if all of its options are right. Names and"
        f" numbers are in the tables.{note}",
    )
