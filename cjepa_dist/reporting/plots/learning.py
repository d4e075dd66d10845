"""Learning curves: what runs logged in metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.reporting.plots.runs import drawn_runs
from cjepa_dist.reporting.plots.style import (
    MARKERS,
    MUTED,
    SERIES,
    Plot,
    add_legend,
    new_figure,
    shorten,
    use_log_scale,
)
from cjepa_dist.reporting.runs import EvaluatedRun
from cjepa_dist.runtime.files import read_json_lines

MAX_POINTS = 150  # of a line: more cannot be seen
Curves = dict[str, dict[str, np.ndarray]]  # kind (train, val) -> {metric or "step": (N,)}


def read_curves(run: Path) -> Curves:
    """What a run logged, by kind; {} if it logged nothing. A cut last line is left out."""
    path = run / "metrics.jsonl"
    rows: dict[str, list[dict[str, Any]]] = {}
    for _, row in read_json_lines(path):
        rows.setdefault(str(row.get("kind", "")), []).append(row)
    return {
        kind: {
            name: np.array([numeric(row.get(name)) for row in of_kind])
            for name in dict.fromkeys(name for row in of_kind for name in row)
            if name != "kind"
        }
        for kind, of_kind in rows.items()
    }


def numeric(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # an int that is larger than any float
        return math.nan


def thin(values: np.ndarray) -> np.ndarray:
    """Means over neighbours, so that at most MAX_POINTS remain."""
    group = -(-len(values) // MAX_POINTS)
    if group <= 1:
        return values
    padded = np.append(values, np.full(-len(values) % group, np.nan))
    return np.nanmean(padded.reshape(-1, group), axis=1)


def learning_plots(world_models: list[EvaluatedRun], aloes: list[EvaluatedRun]) -> list[Plot]:
    """Losses of world models, losses and accuracies of ALOE runs; only what was logged."""
    models, note = drawn_runs({run.name: {"curves": read_curves(run.path)} for run in world_models})
    readers, reader_note = drawn_runs(
        {run.name: {"curves": read_curves(run.path)} for run in aloes}
    )
    dots = "Lines: training. Dots: validation, where it was measured."
    wanted = (
        (
            "learning-world-models",
            "World models learn",
            models,
            "loss_future",
            "copy_last_frame",
            f"Error of the predicted frames. {dots} Dashed grey: the last frame copied, on"
            f" validation.{note}",
            "error of predicted slots",
        ),
        (
            "learning-aloe-loss",
            "ALOE learns: loss",
            readers,
            "loss",
            "",
            f"Loss over all questions; a blind control should stay above. {dots}{reader_note}",
            "loss",
        ),
        (
            "learning-aloe-accuracy",
            "ALOE learns: descriptive questions",
            readers,
            "accuracy_descriptive",
            "",
            f"Right answers to descriptive questions. {dots}{reader_note}",
            "right answers, percent",
        ),
    )
    plots = []
    for key, title, runs, metric, control, caption, ylabel in wanted:
        curves = {name: run["curves"] for name, run in runs.items()}
        curves = {n: c for n, c in curves.items() if any(metric in kind for kind in c.values())}
        if curves:
            figure = learning_curves(curves, metric, control, ylabel)
            last = ", ".join(f"{name} {last_value(c, metric):.3g}" for name, c in curves.items())
            plots.append(Plot(key, title, figure, f"{ylabel}, last: {last}.", caption))
    return plots


def last_value(curves: Curves, metric: str) -> float:
    """On validation if it was measured there, else in training."""
    kind = "val" if metric in curves.get("val", {}) else "train"
    return float(curves[kind][metric][-1])


def learning_curves(runs: dict[str, Curves], metric: str, control: str, ylabel: str) -> Any:
    """A line and dots for each run; accuracies in percent, losses on a logarithmic axis."""
    figure, axis = new_figure(3.2)
    scale = 100.0 if metric.startswith("accuracy") else 1.0
    drawn_control = False
    for number, (name, curves) in enumerate(runs.items()):
        color = SERIES[number % len(SERIES)]
        train, val = curves.get("train", {}), curves.get("val", {})
        if metric in train:
            axis.plot(
                thin(train["step"]),
                scale * thin(train[metric]),
                color=color,
                linewidth=1.2,
                alpha=0.75,
                label=shorten(name) if metric not in val else None,
            )
        if metric in val:
            axis.plot(
                val["step"],
                scale * val[metric],
                color=color,
                linestyle="none",
                marker=MARKERS[number % len(MARKERS)],
                markersize=6.5,
                label=shorten(name),
            )
        if control in val and not drawn_control:
            level = float(np.nanmean(val[control]))
            axis.axhline(level, color=MUTED, linestyle="--", linewidth=1.4, label="copy")
            drawn_control = True
    if scale == 1.0:
        use_log_scale(axis, "y")
    else:
        axis.set_ylim(0, 100)
    axis.set_xlabel("step")
    axis.set_ylabel(ylabel)
    add_legend(figure, axis)
    return figure
