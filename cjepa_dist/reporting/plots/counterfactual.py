"""Plot of worlds without an object: how far they are from the simulator's."""

from __future__ import annotations

from cjepa_dist.reporting.plots.intervals import UNKNOWN, Marks, interval_chart
from cjepa_dist.reporting.plots.runs import drawn_runs, value_and_interval
from cjepa_dist.reporting.plots.style import Plot
from cjepa_dist.reporting.tables import Results

# Rules that need the truth are not a model's; the order is that of the rows.
LABELS = {
    "paired": "the model's rule",
    "factual": "nothing else changes",
    "free": "everything predicted anew",
    "oracle": "true divergence, predicted",
    "truth": "the simulator's own worlds",
}


def counterfactual_plot(counterfactual: Results) -> Plot | None:
    """Position errors of objects that the removal affects, a row for each rule."""
    models, note = drawn_runs(counterfactual, most=3)
    if not models:
        return None
    rules = [rule for rule in LABELS if any(rule in r["rules"] for r in models.values())]
    marks = [
        Marks(
            name,
            [
                value_and_interval(result["rules"][rule]["affected"]["mean"], "position_rmse")
                if rule in result["rules"]
                else UNKNOWN
                for rule in rules
            ],
        )
        for name, result in models.items()
    ]
    rows = [LABELS[rule] for rule in rules]
    xlabel = "distance from the true path, world units"
    controls = [number for number, rule in enumerate(rules) if rule != "paired"]
    figure = interval_chart(rows, marks, xlabel, shaded=controls)
    values = "; ".join(
        f"{row}: " + ", ".join(f"{mark.label} {mark.values[r][0]:.3f}" for mark in marks)
        for r, row in enumerate(rows)
    )
    return Plot(
        "counterfactual",
        "Paths of objects that the removal affects",
        figure,
        f"Position error by rule. {values}.",
        "One object is taken away; the simulator says exactly where the others would have gone."
        " The rule says from which frame on an object leaves its observed path. Shaded are the"
        f" controls. Bars are 95 % intervals over videos.{note}",
    )
