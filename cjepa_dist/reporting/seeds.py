"""Compare arms over seeds: mean ± standard deviation, and the difference from the first arm.

    {arm: {seed: {measure: number}}} ──seed_table──> Markdown:
                                       mean ± std | difference [95 % interval] (of every seed)

Each seed of an arm is paired with the same seed of the first arm. The interval is a bootstrap over
seeds: it includes the variation between trainings, which a bootstrap over videos does not. It is
rough for few seeds: with three it is close to their range, and excludes 0 whenever all differences
have one sign, which happens in one of four cases by chance. So the difference of every seed is
shown, and an interval that excludes 0 is marked only from MIN_SEEDS_TO_MARK seeds on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.reporting.runs import EvaluatedRun, short_names
from cjepa_dist.reporting.tables import header, row

ResultsByArm = dict[str, dict[str, dict[str, float]]]
# With six seeds all differences have one sign by chance in 2 of 2^6 cases: below 5 % (sign test).
MIN_SEEDS_TO_MARK = 6
MARK_NOTE = (
    f"* = the interval excludes 0, with {MIN_SEEDS_TO_MARK} seeds or more: with fewer, one common "
    "sign is too often chance"
)
COMPARED_ERRORS = {  # the slot errors of world models that are compared: (kind, class of objects)
    "one step, colliding": ("one_step", "colliding"),
    "one step, free": ("one_step", "free"),
    "rollout, colliding": ("rollout", "colliding"),
}


def predictor_errors(result: dict[str, Any]) -> dict[str, float]:
    """The predictor's slot errors in a result of `evaluate`, by the names in COMPARED_ERRORS."""
    errors = {}
    for name, (kind, object_class) in COMPARED_ERRORS.items():
        predictor = (result.get(kind) or {}).get("methods", {}).get("predictor", {})
        cell = (predictor.get(object_class) or {}).get("mean")
        if cell and cell["slot_mse"] is not None:
            errors[name] = cell["slot_mse"]
    return errors


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Percent correct in a result of `evaluate` for an ALOE run, by group of questions."""
    return {
        group: 100 * cell["accuracy"]
        for group, cell in result["accuracy"].items()
        if cell["accuracy"] is not None
    }


def mean_results(results: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each measure over several results that all have it."""
    return {
        name: float(np.mean([result[name] for result in results]))
        for name in results[0]
        if all(name in r for r in results)
    }


def arm_and_seed(run: Path) -> tuple[Path, str] | None:
    """(folder of the arm, name of the seed) of a run in <arm>/seed_<n>; None for other runs."""
    return (run.parent, run.name) if re.match(r"seed_\d", run.name) else None


def seed_table(
    results: ResultsByArm, *, percent: bool, draws: int, seed: int = 0, digits: int = 4
) -> list[str]:
    """Lines of Markdown; differences in percent of the first arm, or in the measures' own unit.

    A seed that the first arm lacks counts only in the mean of its arm.
    """
    reference = next(iter(results.values()))
    measures = list(
        dict.fromkeys(name for runs in results.values() for run in runs.values() for name in run)
    )
    change = "difference %" if percent else "difference"
    columns = [(name, f"{change} [95 %] (by seed)") for name in measures]
    lines = header("arm", "seeds", *(name for pair in columns for name in pair))
    for arm, runs in results.items():
        cells = [arm, str(len(runs))]
        for name in measures:
            values = [run[name] for run in runs.values() if name in run]
            cells.append(format_mean_std(values, digits))
            pairs = [
                (run[name], reference[key][name])
                for key, run in runs.items()
                if name in run and name in reference.get(key, {})
            ]
            is_reference = runs is reference
            cells.append(
                "" if is_reference else paired_difference(np.array(pairs), percent, draws, seed)
            )
        lines.append(row(*cells))
    return lines


def format_mean_std(values: list[float], digits: int) -> str:
    """Mean ± standard deviation (n - 1)."""
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def paired_difference(pairs: np.ndarray, percent: bool, draws: int, seed: int) -> str:
    """Mean difference with an interval, and that of every seed; `pairs` (n, 2): arm, first arm."""
    if not len(pairs):
        return "-"
    changes = 100 * (pairs[:, 0] / pairs[:, 1] - 1) if percent else pairs[:, 0] - pairs[:, 1]
    if len(changes) == 1:
        return f"{changes[0]:+.1f}"
    low, high = bootstrap(changes, np.mean, draws, seed)
    mark = "" if low <= 0 <= high or len(changes) < MIN_SEEDS_TO_MARK else " *"
    by_seed = ", ".join(f"{change:+.1f}" for change in changes)
    return f"{changes.mean():+.1f} [{float(low):+.1f}, {float(high):+.1f}]{mark} ({by_seed})"


def seeds_section(
    runs: list[EvaluatedRun], kind: str, *, draws: int, seed: int, title: str = ""
) -> list[str]:
    """The arms of runs in <arm>/seed_<n>; [] unless an arm has several seeds.

    `kind` is that of the results to compare: "vqa" or "world_model".
    """
    by_arm: dict[Path, dict[str, dict[str, float]]] = {}
    read = accuracies if kind == "vqa" else predictor_errors
    for run in runs:
        if kind in run.results and (place := arm_and_seed(run.path.resolve())):
            arm, name = place
            by_arm.setdefault(arm, {})[name] = read(run.results[kind])
    if max(map(len, by_arm.values()), default=0) < 2:
        return []
    named = dict(zip(short_names(list(by_arm)), by_arm.values()))
    if kind == "vqa":
        title, unit = title or "VQA", "Accuracy, percent"
        lines = seed_table(named, percent=False, draws=draws, seed=seed, digits=1)
    else:
        title, unit = title or "World models", "Slot MSE"
        lines = seed_table(named, percent=True, draws=draws, seed=seed, digits=4)
    return [
        f"## {title} over seeds\n",
        f"{unit}; mean ± standard deviation over seeds; differences from the first arm, paired by "
        f"seed, 95 % bootstrap over seeds ({MARK_NOTE}).\n",
        *lines,
        "",
    ]


def shared_readers_section(folder: str, split: str, *, draws: int, seed: int) -> list[str]:
    """World models, compared by the accuracy of the same ALOEs ("readers") on their rollouts.

    No two world models then differ by the training of an ALOE. Only readers that answered from the
    rollout of every world model count.
    """
    by_arm: dict[str, dict[str, dict[str, dict[str, float]]]] = {}  # arm, seed, reader, measure
    paths = Path(folder).glob(f"*/seed_*/*/vqa_{split}.json") if folder else ()
    for path in sorted(paths):
        arm, run, reader = path.parts[-4:-1]
        result = json.loads(path.read_text(encoding="utf-8"))
        by_arm.setdefault(arm, {}).setdefault(run, {})[reader] = accuracies(result)
    if not by_arm:
        return []
    heading = "## World models by shared readers\n"
    common = set.intersection(
        *(set(readers) for runs in by_arm.values() for readers in runs.values())
    )
    if not common:
        return [heading, "No reader has answered from the rollouts of all world models.\n"]
    names = sorted(common)
    means = {
        arm: {run: mean_results([readers[name] for name in names]) for run, readers in runs.items()}
        for arm, runs in by_arm.items()
    }
    return [
        heading,
        f"Accuracy, percent, a mean over {', '.join(names)}; ± and intervals are over seeds of the "
        f"world models, paired by seed ({MARK_NOTE}).\n",
        *seed_table(means, percent=False, draws=draws, seed=seed, digits=1),
        "",
    ]
