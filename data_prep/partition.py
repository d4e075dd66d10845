"""One data set made by several processes: which share of the videos is whose.

all videos, in order ──share(videos, "3/8")──> the fourth of eight equal runs of them ──> a data set that says so ──merge──> one
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from cjepa_dist.config.fields import option
from cjepa_dist.errors import UserError

Item = TypeVar("Item")


def part_option() -> Any:
    """The config field `part`."""
    return option(
        "",
        "make only share i of n, as i/n with i from 0; data_prep.merge puts the n data sets together; empty = all",
    )


def select_part(items: list[Item], part: str) -> list[Item]:
    """The run of `items` that is part "i/n"; all of them for "". UserError for anything else, and for a part without an item."""
    if not part:
        return items
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"config field part={part!r}: must be i/n with 0 <= i < n, like 0/8")
    i, n = int(match[1]), int(match[2])
    if n > len(items):
        raise UserError(
            f"config field part={part!r}: there are only {len(items)} videos to share out"
        )
    return items[i * len(items) // n : (i + 1) * len(items) // n]


def record_part(source: dict[str, Any], part: str) -> dict[str, Any]:
    """A manifest's `source` that says which part it is."""
    return {**source, "part": part} if part else source
