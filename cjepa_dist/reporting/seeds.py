"""Arms x seeds side by side: mean, spread over seeds, and what an arm changes, each seed paired with the same seed of the first arm.

    {arm: {seed: {measure: number}}} ──> table ──> Markdown: mean ± sd | difference [95 % interval] (seed by seed)

The interval is a bootstrap over seeds: it knows the spread between trainings, which that over videos does not. Few seeds make it rough:
of three it is close to their range, and leaves out 0 whenever all have one sign, one time in four where nothing differs. So every seed's
difference stands beside it, and only of ENOUGH seeds is one that leaves out 0 marked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.evaluation.bootstrap import bootstrap

Found = dict[str, dict[str, dict[str, float]]]
ENOUGH = 6  # fewest seeds whose one sign happens less than once in twenty where nothing differs (sign test: 2 / 2^6)
MARK = f"* = without 0, of {ENOUGH} seeds or more: fewer of one sign are too often chance"
ERRORS = {  # slot errors of a world model that are compared
    "one step, colliding": ("one_step", "colliding"),
    "one step, free": ("one_step", "free"),
    "rollout, colliding": ("rollout", "colliding"),
}


def errors(result: dict[str, Any]) -> dict[str, float]:
    """The predictor's slot errors in evaluate's JSON, by the names in ERRORS; what was not measured is left out."""
    found = {}
    for name, (kind, group) in ERRORS.items():
        cell = (
            (result.get(kind) or {}).get("methods", {}).get("predictor", {}).get(group) or {}
        ).get("mean")
        if cell and cell["slot_mse"] is not None:
            found[name] = cell["slot_mse"]
    return found


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Percent right in evaluate's JSON of an ALOE, by group of questions."""
    return {
        group: 100 * cell["accuracy"]
        for group, cell in result["accuracy"].items()
        if cell["accuracy"] is not None
    }


def mean(results: list[dict[str, float]]) -> dict[str, float]:
    """Of several results, measure by measure; what one of them lacks is left out."""
    return {
        name: float(np.mean([result[name] for result in results]))
        for name in results[0]
        if all(name in r for r in results)
    }


def arm_and_seed(run: Path) -> tuple[Path, str] | None:
    """(folder of the arm, name of the seed) of a run in <arm>/seed_<n>; None for one that lies elsewhere."""
    return (run.parent, run.name) if re.match(r"seed_\d", run.name) else None


def table(found: Found, *, percent: bool, draws: int, seed: int = 0, digits: int = 4) -> list[str]:
    """Lines of Markdown; differences from the first arm in percent of it, or in the measures' own unit.

    A seed that an arm has and the first arm lacks counts in the arm's mean alone.
    """
    reference = next(iter(found.values()))
    measures = list(
        dict.fromkeys(name for runs in found.values() for run in runs.values() for name in run)
    )
    change = "difference %" if percent else "difference"
    lines = [
        "| arm | seeds | "
        + " | ".join(f"{name} | {change} [95 %] (by seed)" for name in measures)
        + " |"
    ]
    lines.append("|---|---|" + "---|---|" * len(measures))
    for arm, runs in found.items():
        cells = [arm, str(len(runs))]
        for name in measures:
            values = [run[name] for run in runs.values() if name in run]
            cells.append(spread(values, digits))
            pairs = [
                (run[name], reference[key][name])
                for key, run in runs.items()
                if name in run and name in reference.get(key, {})
            ]
            cells.append(
                "" if runs is reference else difference(np.array(pairs), percent, draws, seed)
            )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation (n - 1)."""
    if not values:
        return "-"
    return f"{np.mean(values):.{digits}f}" + (
        f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    )


def difference(pairs: np.ndarray, percent: bool, draws: int, seed: int) -> str:
    """`pairs` (n, 2) of (arm, first arm)."""
    if not len(pairs):
        return "-"
    changes = 100 * (pairs[:, 0] / pairs[:, 1] - 1) if percent else pairs[:, 0] - pairs[:, 1]
    if len(changes) == 1:
        return f"{changes[0]:+.1f}"
    low, high = bootstrap(changes, np.mean, draws, seed)
    clear = "" if low <= 0 <= high or len(changes) < ENOUGH else " *"
    return f"{changes.mean():+.1f} [{float(low):+.1f}, {float(high):+.1f}]{clear} ({', '.join(f'{c:+.1f}' for c in changes)})"
