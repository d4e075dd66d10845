"""Fields of an experiment: nested or flat, one value or several, as arguments and as a part of a folder's name."""

from __future__ import annotations

import itertools
import json
from typing import Any

from cjepa_dist.config import fields
from cjepa_dist.config.merge import flatten
from cjepa_dist.errors import UserError


def combinations(
    fields: dict[str, Any], kind: type, sweep: str
) -> list[tuple[str, dict[str, Any]]]:
    """The combinations of the swept fields, crossed or zipped: (suffix for a name, fields with one value each)."""
    whole = dict(flatten(fields))
    sweeps = {key: value for key, value in whole.items() if is_swept(key, value, kind)}
    if empty := [key for key, values in sweeps.items() if not values]:
        raise UserError(f"config field {empty[0]}: a sweep needs at least one value")
    if sweep == "zip" and len({len(values) for values in sweeps.values()}) > 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in sweeps.items())
        raise UserError(
            f"sweep=zip needs lists of one length: {lengths}; sweep=cross takes every combination"
        )
    combinations = (
        zip(*sweeps.values()) if sweep == "zip" and sweeps else itertools.product(*sweeps.values())
    )
    chosen = [dict(zip(sweeps, values)) for values in combinations]
    return [
        (
            "".join(f"+{key}_{folder_name_part(value)}" for key, value in one.items()),
            {**whole, **one},
        )
        for one in chosen
    ]


def is_swept(key: str, value: Any, kind: type) -> bool:
    """Whether a list is several values of a field, and not one value of a field that takes a list."""
    if not isinstance(value, list):
        return False
    takes_list = any(
        name == key and isinstance(fields.default_of(field), list)
        for name, field in fields.leaf_fields(kind)
    )
    return not takes_list or any(isinstance(each, list) for each in value)


def folder_name_part(value: Any) -> str:
    """A value as a part of a folder's name: commas part the runs of a report, and `/` folders."""
    return (
        (json.dumps(value) if isinstance(value, (bool, list)) else str(value))
        .replace("/", "-")
        .replace(",", "-")
        .replace(" ", "")
    )


def to_arguments(fields: dict[str, Any]) -> list[str]:
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in flatten(fields)
    ]
