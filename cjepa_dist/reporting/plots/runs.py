"""Which runs a plot shows, and what they are called there."""

from __future__ import annotations

import re
from typing import Any

from cjepa_dist.reporting.tables import Results

MAX_RUNS = 5  # more cannot be told apart


def drawn_runs(results: Results, most: int = MAX_RUNS) -> tuple[Results, str]:
    """({label: result} of the runs to draw, a sentence for the caption on what is left out).

    Of each arm the first seed; the label is without it.
    """
    first: dict[str, str] = {}
    for name in results:
        first.setdefault(without_seed(name), name)
    drawn = dict(list(first.items())[:most])
    left_out = len(results) - len(drawn)
    note = (
        f" Drawn are {len(drawn)} of {len(results)} runs, the first seed of each kind; the others"
        " are in the tables."
    )
    return {label: results[name] for label, name in drawn.items()}, note if left_out else ""


def without_seed(name: str) -> str:
    """`ctt/seed_0` -> `ctt`; a run that is only called seed_0 keeps its name."""
    return re.sub(r"/seed_\d+(?=$|[_/:])", "", name) or name


def value_and_interval(cell: dict[str, Any] | None, key: str) -> tuple[float, float, float]:
    """(value, low, high) of a cell {key, key_ci}; nan where it is not known."""
    nan = float("nan")
    if not cell or cell.get(key) is None:
        return nan, nan, nan
    low, high = cell.get(f"{key}_ci") or (nan, nan)
    return cell[key], low, high
