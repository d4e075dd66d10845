"""The tables that evaluations print on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from cjepa_dist.data.counterfactual_worlds import EXCLUSION_REASON
from cjepa_dist.reporting.vqa_tables import (
    format_percent,
    format_percent_mean_std,
    group_label,
)


def print_table(table: Table, *lines: str) -> None:
    """Print a table and lines of text below it; 140 columns wide where there is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)


def vqa_table(result: dict[str, Any]) -> Table:
    """Accuracy by group of questions, beside majority and chance."""
    table = Table(
        title=f"VQA accuracy in percent: {result['split']}, {result['protocol']} protocol, "
        f"start {result['start']}"
    )
    if result["excluded_questions"]:
        table.caption = (
            f"{result['excluded_questions']} counterfactual questions {EXCLUSION_REASON}"
        )
    for name in ("questions", "accuracy", "95 %", "over starts", "majority", "chance", "count"):
        table.add_column(name)
    baselines = result["baselines"]
    for group, cell in result["accuracy"].items():
        if cell["accuracy"] is None:
            continue
        low, high = cell["ci"]
        starts = result["starts"]["groups"].get(group)
        table.add_row(
            group_label(group),
            format_percent(cell["accuracy"]),
            f"{format_percent(low)} to {format_percent(high)}",
            format_percent_mean_std(starts) if starts else "-",
            format_percent(baselines["majority_by_kind"][group]),
            format_percent(baselines["chance"][group]),
            str(cell["count"]),
        )
    return table


def world_model_table(result: dict[str, Any]) -> Table:
    """Errors by method: one step by class of objects, and rollouts where the data has a future."""
    one_step, rollout = result["one_step"]["methods"], (result["rollout"] or {}).get("methods", {})
    classes = list(next(iter(one_step.values())))
    rollout_classes = ("colliding", "free") if rollout else ()
    table = Table(title=f"World model, {result['split']}: slot MSE (position RMSE)")
    table.add_column("method")
    for name in classes:
        table.add_column(f"one step, {name.replace('_', ' ')}")
    for name in rollout_classes:
        table.add_column(f"32 frames, {name}")
    for method, cells in one_step.items():
        errors = [cells[name]["mean"] for name in classes]
        errors += [rollout[method][name]["mean"] for name in rollout_classes]
        table.add_row(method, *map(format_errors, errors))
    return table


def format_errors(cell: dict[str, Any]) -> str:
    """Slot MSE, with the position RMSE in brackets where positions are known."""
    if cell["slot_mse"] is None:
        return "-"
    position = "" if cell["position_rmse"] is None else f" ({cell['position_rmse']:.3f})"
    return f"{cell['slot_mse']:.4f}{position}"
