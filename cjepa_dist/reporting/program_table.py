"""What a world model adds to programs that read its rollouts: the fraction of the way it closes.

Programs are privileged readers: which slot holds which object, and the objects' attributes, come
from the annotation. Their accuracy alone says little, since much is answered right where nothing is
predicted. So it is put between that of worlds where nothing changes (0) and that of the simulator's
own worlds (1), on the same videos.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.vqa.metrics import QUESTION_GROUPS
from cjepa_dist.reporting.results import CONTROL_ROLLOUTS
from cjepa_dist.reporting.tables import Results, header, row
from cjepa_dist.reporting.vqa_tables import group_label


def closed_fraction_table(results: Results, *, draws: int, seed: int) -> list[str]:
    """Lines of Markdown; [] without a run that has both control rollouts.

    `results` by "RUN: ROLLOUT", as of `ReportResults.symbolic`.
    """
    by_run: dict[str, Results] = {}
    for name, result in results.items():
        run, _, rollout = name.rpartition(": ")
        by_run.setdefault(run, {})[rollout] = result
    cells: dict[str, dict[str, str]] = {}
    for run, found in by_run.items():
        if not all(control in found for control in CONTROL_ROLLOUTS):
            continue
        nothing, simulator = (found[control] for control in CONTROL_ROLLOUTS)
        for rollout, result in found.items():
            if rollout not in CONTROL_ROLLOUTS:
                cells[f"{run}: {rollout}"] = {
                    group: closed_fraction(nothing, result, simulator, group, draws, seed)
                    for group in QUESTION_GROUPS
                }
    groups = [g for g in QUESTION_GROUPS if any(column[g] != "-" for column in cells.values())]
    if not groups:
        return []
    return [
        "## Question programs: fraction closed\n",
        "Of the accuracy between worlds where nothing changes (0) and the simulator's (1), the part"
        " that the model's worlds reach [95 % interval over videos, the same for all three]. The"
        " programs are privileged: they know identities and attributes. - = no gap to close.\n",
        *header("", *cells),
        *(row(group_label(g), *(column[g] for column in cells.values())) for g in groups),
        "",
    ]


def closed_fraction(
    nothing: dict[str, Any],
    model: dict[str, Any],
    simulator: dict[str, Any],
    group: str,
    draws: int,
    seed: int,
) -> str:
    """The fraction with its interval; "-" where the simulator's interval is not above nothing's."""
    sides = (nothing, model, simulator)
    if any(side["videos"]["scenes"] != model["videos"]["scenes"] for side in sides):
        return "other videos"
    counts = [side["videos"]["counts"][group] for side in sides]
    values = np.array(counts, dtype=np.float64).transpose(1, 0, 2)  # (V, 3, correct and count)

    def gap_and_fraction(sample: np.ndarray) -> np.ndarray:
        total = sample.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            low, middle, high = total[:, 0] / total[:, 1]
            return np.array([high - low, (middle - low) / (high - low)])

    if not values[..., 1].sum(0).all():
        return "-"
    low, high = bootstrap(values, gap_and_fraction, draws, seed)
    if not low[0] > 0:
        return "-"
    return f"{gap_and_fraction(values)[1]:.2f} [{low[1]:.2f}, {high[1]:.2f}]"
