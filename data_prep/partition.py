"""Divides the videos over several processes that make one data set together.

all videos, in order ──select_part(.., "3/8")──> the fourth eighth ──> part ──merge──> data set
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
        "make only part i of n, as i/n with i from 0; data_prep.merge joins the parts; empty = all",
    )


def select_part(items: list[Item], part: str) -> list[Item]:
    """Part "i/n" of `items`, which is contiguous; all of them for "".

    Raises UserError for anything else, and for a part that would be empty.
    """
    if not part:
        return items
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"config field part={part!r}: must be i/n with 0 <= i < n, like 0/8")
    i, n = int(match[1]), int(match[2])
    if n > len(items):
        raise UserError(f"config field part={part!r}: there are only {len(items)} videos to divide")
    return items[i * len(items) // n : (i + 1) * len(items) // n]


def record_part(source: dict[str, Any], part: str) -> dict[str, Any]:
    """The `source` of a manifest, with the part if there is one."""
    return {**source, "part": part} if part else source
