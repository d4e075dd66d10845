"""A chart of values with intervals: a row for each thing measured, a mark for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.reporting.plots.style import (
    CONTROL_MARKERS,
    GRID,
    MARKERS,
    MUTED,
    SERIES,
    add_legend,
    new_figure,
    shorten,
    use_log_scale,
)

Interval = tuple[float, float, float]  # value, low, high; nan where not known
UNKNOWN: Interval = (float("nan"),) * 3  # type: ignore[assignment]


@dataclass(frozen=True)
class Marks:
    """The values of one method, one for each row. Controls are grey and hollow."""

    label: str
    values: Sequence[Interval]
    control: bool = False


def interval_chart(
    rows: Sequence[str],
    marks: Sequence[Marks],
    xlabel: str,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    shaded: Sequence[int] = (),
) -> Any:
    """A figure: rows from the top down, within a row the methods in their order.

    `shaded` are the numbers of rows that are controls. One method alone needs no legend.
    """
    spread = 0.2 * (len(marks) - 1)
    figure, axis = new_figure(height=0.9 + len(rows) * max(0.27, 0.13 + 0.16 * len(marks)))
    y = np.arange(len(rows)) * (1 if len(marks) == 1 else 0.4 + spread + 0.2)
    models = controls = 0
    for number, mark in enumerate(marks):
        at = y + 0.2 * number - spread / 2
        values, low, high = np.array(mark.values, dtype=float).reshape(-1, 3).T
        if mark.control:
            marker = CONTROL_MARKERS[controls % len(CONTROL_MARKERS)]
            style: dict[str, Any] = {"color": MUTED, "marker": marker, "markeredgewidth": 1.6}
            controls += 1
        else:
            style = {
                "color": SERIES[models % len(SERIES)],
                "marker": MARKERS[models % len(MARKERS)],
            }
            models += 1
        known = ~np.isnan(low)
        axis.hlines(at[known], low[known], high[known], color=style["color"], linewidth=1.6)
        axis.plot(values, at, linestyle="none", markersize=6, label=shorten(mark.label), **style)
    axis.set_yticks(y, [shorten(row) for row in rows])
    axis.set_ylim(y[-1] + 0.4 + spread / 2, -0.4 - spread / 2)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    if log:
        use_log_scale(axis, "x")
    if limits:
        axis.set_xlim(*limits)
    axis.set_xlabel(xlabel)
    half = (y[1] - y[0]) / 2 if len(y) > 1 else 0.5
    for row in shaded:
        axis.axhspan(y[row] - half, y[row] + half, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    if len(marks) > 1:
        add_legend(figure, axis)
    return figure
