"""The report's tables: from what evaluations wrote to lines of Markdown; [] when there is nothing to show."""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.evaluation import graphs
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.vqa import GROUPS
from cjepa_dist.reporting.published import PUBLISHED, TYPES

Measured = dict[str, dict[str, Any]]
METHODS = {
    "copy": "copy of the last frame",
    "linear": "linear extrapolation",
    "own_slot": "same predictor, own slot only",
    "predictor": "predictor",
}


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def world_models(models: Measured) -> list[str]:
    """Errors of one step and of rollouts, each predictor beside the simple methods (which are the same for all models of a data set)."""
    if not models:
        return []
    lines = [
        "## World models\n",
        "Slot MSE [95 % interval over videos], position RMSE in brackets (world units; the probe that reads positions off slots errs by "
        + ", ".join(
            f"{rmse:.3f}"
            for rmse in {result.get("probe_rmse"): 0 for result in models.values()}
            if rmse is not None
        )
        + ").",
        "Objects in contact within the predicted interval, close to another without contact, and free.\n",
        "### One step\n",
    ]
    classes = ("colliding", "near_miss", "free", "all")
    lines += header("model", "method", *(name.replace("_", " ") for name in classes))
    for name, result in models.items():
        methods = result["one_step"]["methods"]
        for method in (m for m in METHODS if m in methods):
            lines.append(
                row(
                    name,
                    METHODS[method],
                    *(error(methods[method].get(c, {}).get("mean")) for c in classes),
                )
            )
    rolled = {name: result["rollout"] for name, result in models.items() if result.get("rollout")}
    if rolled:
        lines += ["\n### Rollout of 32 frames (128 .. 159)\n"]
        lines += header(
            "model",
            "method",
            "colliding, mean",
            "after 8",
            "after 16",
            "after 32",
            "free, mean",
            "after 32",
        )
        for name, result in rolled.items():
            methods = result["methods"]
            for method in (m for m in METHODS if m in methods):
                hit, free = methods[method]["colliding"], methods[method]["free"]
                cells = [hit["mean"], hit["8"], hit["16"], hit["32"], free["mean"], free["32"]]
                lines.append(row(name, METHODS[method], *(error(cell) for cell in cells)))
    return [*lines, ""]


def error(cell: dict[str, Any] | None) -> str:
    if not cell or cell["slot_mse"] is None:
        return "-"
    low, high = cell["slot_mse_ci"]
    place = "" if cell["position_rmse"] is None else f" ({cell['position_rmse']:.3f})"
    return f"{cell['slot_mse']:.4f} [{low:.4f}, {high:.4f}]{place}"


def edges(measured: Measured) -> list[str]:
    """The edge tables of each world model, one a target."""
    if not measured:
        return []
    lines = [
        "## Graphs: who influences whom\n",
        "Estimators against the simulator, present pairs; 95 % intervals over videos.\n",
    ]
    for name, result in measured.items():
        for target in result["targets"]:
            lines += [f"### {name}: {target}\n", graphs.markdown(result, target), ""]
    return lines


def counterfactual(measured: Measured) -> list[str]:
    """Worlds without an object against exact re-simulation, by the rule that says whom the removal has reached."""
    if not measured:
        return []
    lines = [
        "## What would have happened\n",
        "Position RMSE (world units) [95 % interval over videos] of objects that the removal has moved and of those it has not touched;",
        "how much of the gap between the factual world and true divergence a rule closes. Collisions as the reader decodes them;",
        "*came or went*: share of the pairs whose collision the removal makes or undoes that are told right.\n",
    ]
    for name, result in measured.items():
        since = list(next(iter(result["rules"].values()))["affected"])[1:]
        lines += [
            f"### {name}: {result['videos']} videos, frames {result['frames'][0]} to {result['frames'][1]}\n"
        ]
        columns = (
            "affected",
            *(f"{n} frames after" for n in since),
            "unaffected",
            "gap closed",
            "diverged: precision",
            "recall",
        )
        lines += header("rule", *columns, "collisions, F1", "came or went")
        for rule, found in result["rules"].items():
            affected = found["affected"]
            cells = [
                place(affected["mean"]),
                *(place(affected[n], interval=False) for n in since),
                place(found["unaffected"]["mean"]),
            ]
            divided = [
                found["divergence"]["precision"],
                found["divergence"]["recall"],
                found["collisions"]["f1"],
                found["changed"],
            ]
            lines.append(
                row(rule, *cells, share(found["gap_closed"]), *(share(value) for value in divided))
            )
        lines.append("")
    return lines


def place(cell: dict[str, Any], interval: bool = True) -> str:
    if cell["position_rmse"] is None:
        return "-"
    low, high = cell["position_rmse_ci"]
    return f"{cell['position_rmse']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if interval else "")


def share(cell: dict[str, float | None]) -> str:
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.2f}" + (
        "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    )


def vqa(measured: Measured, heading: str = "VQA") -> list[str]:
    """Accuracies at the main start, mean over starts, and what one gets without looking."""
    if not measured:
        return []
    lines = [
        f"## {heading}\n",
        "Accuracy in percent [95 % interval over videos]; in brackets mean ± spread over all first frames.",
        "Majority: the most frequent training answer to that kind of question. Chance: uniform.\n",
    ]
    titles = [title(name, result) for name, result in measured.items()]
    lines += header("", *titles, "majority", "chance", "count")
    without = next(iter(measured.values()))["without_looking"]
    for group in GROUPS:
        cells = [result["accuracy"][group] for result in measured.values()]
        if not any(cell["count"] for cell in cells):
            continue
        shown = [
            accuracy(cell, result["starts"]["groups"].get(group))
            for cell, result in zip(cells, measured.values())
        ]
        blind = [percent(without[name][group]) for name in ("majority_by_kind", "chance")]
        lines.append(row(label(group), *shown, *blind, cells[0]["count"]))
    return [*lines, ""]


def title(name: str, result: dict[str, Any]) -> str:
    """An ALOE run's name, with what is not as published."""
    left_out = result.get("left_out", 0)
    notes = [
        note
        for note, holds in (
            ("counterfactual", result.get("protocol") == "counterfactual"),
            ("blind", result.get("blind")),
            (f"{left_out} questions left out", left_out),
        )
        if holds
    ]
    return f"{name} ({', '.join(notes)})" if notes else name


def accuracy(cell: dict[str, Any], starts: dict[str, float] | None) -> str:
    if cell["accuracy"] is None:
        return "-"
    over = f" ({percent(starts['mean'])} ± {percent(starts['std'])})" if starts else ""
    return f"{percent(cell['accuracy'])} [{percent(cell['ci'][0])}, {percent(cell['ci'][1])}]{over}"


def differences(measured: Measured, *, draws: int, seed: int) -> list[str]:
    """Each run minus the first, in points, paired by video: the same videos are drawn for both."""
    if len(measured) < 2:
        return []
    (first, base), *others = measured.items()
    lines = [
        f"## Differences against {first}\n",
        "Points [95 % interval, bootstrap over the same videos for both runs]. The interval knows nothing of other seeds.\n",
        *header("", *(name for name, _ in others)),
    ]
    for group in GROUPS:
        if base["accuracy"][group]["count"]:
            lines.append(
                row(
                    label(group),
                    *(difference(base, other, group, draws, seed) for _, other in others),
                )
            )
    return [*lines, ""]


def difference(
    base: dict[str, Any], other: dict[str, Any], group: str, draws: int, seed: int
) -> str:
    if base["videos"]["scenes"] != other["videos"]["scenes"]:
        return "other videos"
    values = np.array(
        [side["videos"]["counts"][group] for side in (base, other)], dtype=np.float64
    ).transpose(1, 0, 2)  # (V, 2 runs, 2)
    if not values[..., 1].sum(0).all():
        return "-"

    def gap(sample: np.ndarray) -> float:
        total = sample.sum(0)
        return (
            float(total[1, 0] / total[1, 1] - total[0, 0] / total[0, 1])
            if total[:, 1].all()
            else float("nan")
        )

    low, high = bootstrap(values, gap, draws, seed)
    clear = "" if low <= 0 <= high else " *"
    return f"{100 * gap(values):+.1f} [{100 * float(low):+.1f}, {100 * float(high):+.1f}]{clear}"


def published(measured: Measured) -> list[str]:
    """Published accuracies per question on CLEVRER, ours on top. A simulated world is not CLEVRER, and the text says so."""
    if not measured:
        return []
    lines = [
        "## Published numbers, per question\n",
        "On real CLEVRER. Ours compare with them only if the data are real CLEVRER too: the simulated world is another.\n",
        *header("", "split", *TYPES, "note"),
    ]
    for name, result in measured.items():
        cells = [percent(result["accuracy"][f"{kind}.question"]["accuracy"]) for kind in TYPES]
        lines.append(row(f"**{name}** (ours)", result["split"], *cells, f"step {result['step']}"))
    for entry in PUBLISHED:
        option = (None, *(entry.option or (None, None, None)))
        cells = [
            f"{q:.1f}" + (f" (per option {o:.1f})" if o is not None else "")
            for q, o in zip(entry.question, option)
        ]
        note = "; ".join(
            part
            for part in (entry.note, f"average {entry.average}" if entry.average else "")
            if part
        )
        lines.append(row(entry.name, entry.split, *cells, note))
    return [*lines, ""]


def label(group: str) -> str:
    kind, unit = group.split(".")
    return kind.replace("_", " ") + ("" if kind in ("overall", "descriptive") else f", per {unit}")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
