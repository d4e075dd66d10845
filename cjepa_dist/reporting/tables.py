"""The report's tables: results of evaluations -> lines of Markdown; [] where there is no result."""

from __future__ import annotations

from typing import Any

from cjepa_dist.evaluation.graph_metrics import EDGE_METRICS

Results = dict[str, dict[str, Any]]  # name of a run -> a result file of it

METHOD_LABELS = {
    "copy": "copy of the last frame",
    "linear": "linear extrapolation",
    "own_slot": "same predictor, own slot only",
    "predictor": "predictor",
}


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def world_model_tables(results: Results) -> list[str]:
    """Errors of one step and of rollouts: each predictor, beside copying and extrapolating."""
    if not results:
        return []
    probe_rmse = {result.get("probe_rmse"): 0 for result in results.values()}
    probe_error = ", ".join(f"{rmse:.3f}" for rmse in probe_rmse if rmse is not None)
    lines = [
        "## World models\n",
        "Slot MSE [95 % interval over videos], position RMSE in brackets (world units; the probe "
        f"that reads positions off slots has an error of {probe_error}).",
        "Objects in contact within the predicted interval, close to another without contact, and "
        "free.\n",
        "### One step\n",
    ]
    classes = ("colliding", "near_miss", "free", "all")
    lines += header("model", "method", *(name.replace("_", " ") for name in classes))
    for name, result in results.items():
        methods = result["one_step"]["methods"]
        for method in (m for m in METHOD_LABELS if m in methods):
            lines.append(
                row(
                    name,
                    METHOD_LABELS[method],
                    *(format_slot_error(methods[method].get(c, {}).get("mean")) for c in classes),
                )
            )
    rolled = {name: result["rollout"] for name, result in results.items() if result.get("rollout")}
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
            for method in (m for m in METHOD_LABELS if m in methods):
                hit, free = methods[method]["colliding"], methods[method]["free"]
                cells = [hit["mean"], hit["8"], hit["16"], hit["32"], free["mean"], free["32"]]
                lines.append(
                    row(name, METHOD_LABELS[method], *(format_slot_error(cell) for cell in cells))
                )
    return [*lines, ""]


def format_slot_error(cell: dict[str, Any] | None) -> str:
    if not cell or cell["slot_mse"] is None:
        return "-"
    low, high = cell["slot_mse_ci"]
    position = "" if cell["position_rmse"] is None else f" ({cell['position_rmse']:.3f})"
    return f"{cell['slot_mse']:.4f} [{low:.4f}, {high:.4f}]{position}"


def graph_tables(results: Results) -> list[str]:
    """The edge metrics of each world model, one table per target."""
    if not results:
        return []
    lines = [
        "## Graphs: who influences whom\n",
        "Estimators against the simulator, present pairs; 95 % intervals over videos.\n",
    ]
    for name, result in results.items():
        for target in result["targets"]:
            lines += [f"### {name}: {target}\n", graph_table(result, target), ""]
    return lines


def counterfactual_tables(results: Results) -> list[str]:
    """Worlds without an object against exact re-simulation, by divergence rule."""
    if not results:
        return []
    lines = [
        "## Counterfactual worlds\n",
        "Position RMSE (world units) [95 % interval over videos] of objects that the removal "
        "affects and of those it does not;",
        "how much of the gap between the factual world and true divergence a rule closes; "
        "collisions as decoded from slots;",
        "*changed*: of the pairs whose collision the removal causes or prevents, the fraction that "
        "is predicted correctly.\n",
    ]
    for name, result in results.items():
        since = list(next(iter(result["rules"].values()))["affected"])[1:]
        first, last = result["frames"]
        lines += [f"### {name}: {result['videos']} videos, frames {first} to {last}\n"]
        columns = (
            "affected",
            *(f"{n} frames after" for n in since),
            "unaffected",
            "gap closed",
            "diverged: precision",
            "recall",
        )
        lines += header("rule", *columns, "collisions, F1", "changed")
        for rule, metrics in result["rules"].items():
            affected = metrics["affected"]
            errors = [
                format_position_error(affected["mean"]),
                *(format_position_error(affected[n], interval=False) for n in since),
                format_position_error(metrics["unaffected"]["mean"]),
            ]
            fractions = [
                metrics["gap_closed"],
                metrics["divergence"]["precision"],
                metrics["divergence"]["recall"],
                metrics["collisions"]["f1"],
                metrics["changed_collisions"],
            ]
            lines.append(row(rule, *errors, *map(format_interval, fractions)))
        lines.append("")
    return lines


def format_position_error(cell: dict[str, Any], interval: bool = True) -> str:
    if cell["position_rmse"] is None:
        return "-"
    low, high = cell["position_rmse_ci"]
    return f"{cell['position_rmse']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if interval else "")


def format_interval(cell: dict[str, float | None]) -> str:
    if cell["value"] is None:
        return "-"
    interval = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['value']:.2f}{interval}"


def graph_table(result: dict[str, Any], target: str = "contact") -> str:
    """One target as a Markdown table."""
    part = result["targets"][target]
    lines = [
        f"{target}: {part['pairs']} pairs, base rate {format_number(part['base_rate'])}; "
        f"{part['near_misses']} near misses; {result['windows']} windows, "
        f"{result['windows_with_contact']} with a contact, of {result['videos']} videos",
        "",
        *header(
            "estimator",
            "AUROC",
            "AUPRC",
            "F1",
            "best F1",
            "SHD / window",
            "AUROC, near misses",
        ),
    ]
    for name, metrics in part["estimators"].items():
        cells = []
        for metric in EDGE_METRICS:
            value, low, high = (
                format_number(metrics[metric][key]) for key in ("value", "low", "high")
            )
            cells.append(f"{value} ({low} .. {high})")
        lines.append(row(name, *cells))
    return "\n".join(lines)


def format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
