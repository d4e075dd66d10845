"""What evaluations share at their end: a JSON file that is whole or the old one, and the table of accuracies on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table as RichTable

from cjepa_dist.data.counterfactual_worlds import WHY


def vqa_table(result: dict[str, Any]) -> RichTable:
    table = RichTable(
        title=f"VQA, {result['split']}, {result['protocol']} protocol, start {result['start']}: accuracy in percent"
    )
    if result["left_out"]:
        table.caption = f"{result['left_out']} counterfactual questions {WHY}"
    for name in ("questions", "accuracy", "95 %", "over starts", "majority", "chance", "count"):
        table.add_column(name)
    without = result["without_looking"]
    for group, cell in result["accuracy"].items():
        if cell["accuracy"] is None:
            continue
        mean = result["starts"]["groups"].get(group)
        table.add_row(
            group.replace(".", ", per ").replace("_", " "),
            percent(cell["accuracy"]),
            f"{percent(cell['ci'][0])} to {percent(cell['ci'][1])}",
            f"{percent(mean['mean'])} ± {percent(mean['std'])}" if mean else "-",
            percent(without["majority_by_kind"][group]),
            percent(without["chance"][group]),
            str(cell["count"]),
        )
    return table


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
