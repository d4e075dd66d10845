"""Plots of what happens next: errors by frame, and of one step by what happens to the object."""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.reporting.plots.intervals import UNKNOWN, Marks, interval_chart
from cjepa_dist.reporting.plots.runs import drawn_runs, value_and_interval
from cjepa_dist.reporting.plots.style import (
    CONTROL_DASHES,
    MARKERS,
    MUTED,
    SERIES,
    Plot,
    add_legend,
    new_figure,
    shorten,
    use_log_scale,
)
from cjepa_dist.reporting.tables import METHOD_LABELS, Results

CONTROLS = "Grey: the controls. Bands and bars: 95 % intervals over videos."
INTRO = (
    "How far predicted slots are from the true ones; lower is better. The model sees 128 frames,"
    " then predicts 32 without seeing more. Its controls: the last frame copied, a straight line"
    " through the last two frames, and the same network that sees only the object itself."
)
CLASSES = {
    "colliding": "it collides",
    "near_miss": "near miss",
    "free": "free",
}


def methods_by_label(models: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, bool]]:
    """{label: (errors by class, is a control)}: every model's predictor, then each control once.

    Copying and extrapolating depend on the data alone. The own-slot control is that of the first
    model that was compared with one.
    """
    lines = {name: (methods["predictor"], False) for name, methods in models.items()}
    for method, label in METHOD_LABELS.items():
        found = [methods[method] for methods in models.values() if method in methods]
        if method != "predictor" and found:
            lines[label] = (found[0], True)
    return lines


def error_plots(errors: Results) -> list[Plot]:
    """All plots of errors that the results allow."""
    models, note = drawn_runs(errors)
    one_step = {name: result["one_step"]["methods"] for name, result in models.items()}
    rollouts = {
        name: result["rollout"]["methods"]
        for name, result in models.items()
        if result.get("rollout")
    }
    plots = []
    if rollouts:
        for name, title, object_class, key, unit in (
            ("errors-colliding", "Objects that collide", "colliding", "slot_mse", "slot error"),
            ("errors-free", "Objects that stay free", "free", "slot_mse", "slot error"),
            (
                "positions-colliding",
                "Where objects that collide are",
                "colliding",
                "position_rmse",
                "distance, world units",
            ),
        ):
            figure = error_by_frame(rollouts, object_class, key, unit)
            plots.append(
                Plot(
                    name,
                    f"{title}, up to 32 frames ahead",
                    figure,
                    f"{unit} by frame: {describe_last(rollouts, object_class, key)}",
                    f"{WHAT_IS_DRAWN[name]} {CONTROLS}{note}",
                )
            )
    if one_step:
        plots.append(one_step_plot(one_step, note))
    return plots


WHAT_IS_DRAWN = {
    "errors-colliding": "Objects that touch another after the video: they must be predicted"
    " together with it.",
    "errors-free": "Objects that touch no other: what the object does by itself is enough.",
    "positions-colliding": "Positions are read off the predicted slots; the simulated world is 2"
    " units wide.",
}


def error_by_frame(rollouts: dict[str, Any], object_class: str, key: str, ylabel: str) -> Any:
    """A line for each model and control, with a band; slot errors on a logarithmic axis."""
    figure, axis = new_figure(3.7)
    models = controls = 0
    for label, (cells, is_control) in methods_by_label(rollouts).items():
        by_frame = {
            int(frame): cell for frame, cell in cells[object_class].items() if frame != "mean"
        }
        frames = sorted(by_frame)
        known = np.array([value_and_interval(by_frame[frame], key) for frame in frames])
        if is_control:
            style = {"color": MUTED, "linestyle": CONTROL_DASHES[controls % len(CONTROL_DASHES)]}
            controls += 1
        else:
            style = {
                "color": SERIES[models % len(SERIES)],
                "marker": MARKERS[models % len(MARKERS)],
            }
            models += 1
        axis.plot(frames, known[:, 0], label=shorten(label), **style)
        axis.fill_between(
            frames, known[:, 1], known[:, 2], color=style["color"], alpha=0.13, linewidth=0
        )
    if key == "slot_mse":
        use_log_scale(axis, "y")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel("frames after the video")
    axis.set_ylabel(ylabel)
    axis.set_xticks([1, 8, 16, 24, 32])
    add_legend(figure, axis, columns=1)
    return figure


def describe_last(rollouts: dict[str, Any], object_class: str, key: str) -> str:
    """The last values of all lines, in words."""
    last = []
    for label, (cells, _) in methods_by_label(rollouts).items():
        frames = sorted(int(frame) for frame in cells[object_class] if frame != "mean")
        value, _, _ = value_and_interval(cells[object_class][str(frames[-1])], key)
        last.append(f"{label} {value:.3g}")
    return f"after {frames[-1]} frames {', '.join(last)}."


def one_step_plot(models: dict[str, Any], note: str) -> Plot:
    """Errors of one step, a row for each class of objects."""
    lines = methods_by_label(models)
    classes = [name for name in CLASSES if any(name in cells for cells, _ in lines.values())] or [
        "all"
    ]
    marks = [
        Marks(
            label,
            [
                value_and_interval(cells[name]["mean"], "slot_mse") if name in cells else UNKNOWN
                for name in classes
            ],
            is_control,
        )
        for label, (cells, is_control) in lines.items()
    ]
    rows = [CLASSES.get(name, "all objects") for name in classes]
    figure = interval_chart(rows, marks, "slot error, one step", log=True)
    values = "; ".join(
        f"{row}: " + ", ".join(f"{mark.label} {mark.values[r][0]:.3g}" for mark in marks)
        for r, row in enumerate(rows)
    )
    return Plot(
        "errors-one-step",
        "One step ahead, by what happens to the object",
        figure,
        f"Slot error of one step. {values}.",
        "An object collides if it touches another within the predicted step; it is a near miss if"
        f" it only comes close. {CONTROLS}{note}",
    )
