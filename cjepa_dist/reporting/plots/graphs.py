"""Plots of who influences whom: precision-recall curves, and contacts against near misses."""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.reporting.plots.intervals import UNKNOWN, Interval, Marks, interval_chart
from cjepa_dist.reporting.plots.runs import drawn_runs
from cjepa_dist.reporting.plots.style import (
    INK,
    MUTED,
    SERIES,
    Plot,
    add_legend,
    new_figure,
    shorten,
)
from cjepa_dist.reporting.tables import Results

TARGET = "contact"
MAX_MODELS = 3  # two plots each
# Read from true positions, which no model knows.
DISTANCES = {"distance": "--", "extrapolated_distance": "-."}
# What every graph or none reaches: drawn as the line of chance, or not at all.
BOUNDS = ("oracle", "full", "empty", "shuffled")
LABELS = {
    "attention_rollout": "attention rollout",
    "interventional:hide": "interventional, hidden",
    "interventional:empty": "interventional, empty slot",
    "interventional:swap": "interventional, swapped",
    "interventional:close": "interventional, attention closed",
    "distance": "distance",
    "extrapolated_distance": "distance, extrapolated",
    "shuffled": "truth, shuffled",
}
# The order of the legend and of the colours: the estimator that the project relies on first.
ORDER = (
    "interventional:empty",
    "published",
    "gradient",
    "attention_rollout",
    "attention",
    "interventional:swap",
    "interventional:hide",
    "interventional:close",
)


def graph_plots(graphs: Results) -> list[Plot]:
    """All plots of graphs that the results allow; results of older runs have no curves."""
    models, note = drawn_runs(graphs, MAX_MODELS)
    parts = {
        name: result["targets"][TARGET]
        for name, result in models.items()
        if TARGET in result["targets"]
    }
    plots = [near_miss_plot(parts, note)] if parts else []
    for number, (name, part) in enumerate(parts.items()):
        named = f", {name}" if len(parts) > 1 else ""
        for kind, title, chance in (
            ("near_miss", "Contacts among near misses", part["near_miss_base_rate"]),
            ("all", "Contacts among all pairs", part["base_rate"]),
        ):
            curves = {
                estimator: curve[kind]
                for estimator, curve in part.get("curves", {}).items()
                if curve[kind] is not None and estimator not in BOUNDS
            }
            if curves and chance is not None:
                key = f"edges-{kind.replace('_', '-')}-{number}"
                plots.append(
                    Plot(
                        key,
                        f"{title}{named}",
                        precision_recall(curves, chance),
                        f"Precision by recall of {len(curves)} graph estimators, {title.lower()}; "
                        f"chance is {chance:.2f}. {describe_curves(curves)}",
                        CAPTIONS[kind] + note,
                    )
                )
    return plots


CAPTIONS = {
    "near_miss": "Only pairs that touch and pairs that come close without touching: the hard part."
    " Dashed grey: distance between true positions, now or where straight lines lead. Level line:"
    " an edge everywhere.",
    "all": "Pairs of objects, ranked by the strength of the estimated edge; the truth is which"
    " pairs touch within the predicted step. Dashed grey: distance between true positions.",
}


def ordered(estimators: list[str]) -> list[str]:
    """Known estimators in ORDER, others behind them, distances last."""
    known = [name for name in ORDER if name in estimators]
    others = [name for name in estimators if name not in ORDER and name not in DISTANCES]
    return [*known, *others, *(name for name in DISTANCES if name in estimators)]


def label(estimator: str) -> str:
    return LABELS.get(estimator, estimator.replace("_", " "))


def precision_recall(curves: dict[str, dict[str, list[float]]], chance: float) -> Any:
    """A line for each estimator; the level line is the share of true pairs."""
    figure, axis = new_figure(4.2)
    names = ordered(list(curves))
    models = 0
    for name in names:
        if name in DISTANCES:
            style = {"color": MUTED, "linestyle": DISTANCES[name]}
        else:
            style = {"color": SERIES[models % len(SERIES)]}
            models += 1
        width = 2.6 if name == ORDER[0] else 1.5
        curve = curves[name]
        axis.plot(
            curve["recall"],
            curve["precision"],
            label=shorten(label(name)),
            linewidth=width,
            zorder=3 if name == ORDER[0] else 2,
            **style,
        )
    axis.axhline(chance, color=INK, linewidth=0.9, label="an edge everywhere")
    lowest = min(chance, *(min(curve["precision"]) for curve in curves.values()))
    bottom = max(0.0, np.floor(10 * lowest - 0.5) / 10)
    axis.set(xlim=(0, 1), ylim=(bottom, 1.02), xlabel="recall: found, of the pairs that touch")
    axis.set_ylabel("precision: right, of the found")
    add_legend(figure, axis)
    return figure


def describe_curves(curves: dict[str, dict[str, list[float]]]) -> str:
    """The precision of each estimator where half of the true pairs are found."""
    at_half = []
    for name in ordered(list(curves)):
        recall, precision = curves[name]["recall"], curves[name]["precision"]
        at_half.append(f"{label(name)} {precision[int(np.searchsorted(recall, 0.5))]:.2f}")
    return f"Precision at recall 0.5: {', '.join(at_half)}."


def near_miss_plot(parts: dict[str, Any], note: str) -> Plot:
    """AUROC on near misses, a row for each estimator and a mark for each world model."""
    estimators = ordered(list(next(iter(parts.values()))["estimators"]))
    estimators = [name for name in estimators if name not in BOUNDS]

    def cell(part: dict[str, Any], name: str) -> Interval:
        found = part["estimators"].get(name, {}).get("near_miss_auroc")
        if not found or found["value"] is None:
            return UNKNOWN
        low, high = (
            found[key] if found[key] is not None else UNKNOWN[0] for key in ("low", "high")
        )
        return found["value"], low, high

    marks = [
        Marks(name, [cell(part, estimator) for estimator in estimators])
        for name, part in parts.items()
    ]
    rows = [label(name) for name in estimators]
    controls = [n for n, name in enumerate(estimators) if name in DISTANCES]
    figure = interval_chart(rows, marks, "AUROC on near misses", shaded=controls)
    figure.axes[0].axvline(0.5, color=INK, linewidth=0.9)
    values = "; ".join(
        f"{row}: " + ", ".join(f"{mark.label} {mark.values[r][0]:.3f}" for mark in marks)
        for r, row in enumerate(rows)
    )
    return Plot(
        "edges-auroc",
        "Which graph tells contacts from near misses",
        figure,
        f"AUROC of graph estimators on near misses. {values}.",
        "How often a pair that touches gets a stronger edge than a pair that only comes close; 0.5"
        " is chance. Shaded are the controls, which know the true positions. Bars are 95 %"
        f" intervals over videos.{note}",
    )
