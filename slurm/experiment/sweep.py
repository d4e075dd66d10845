"""Swept fields of an experiment: their combinations, as arguments and as parts of folder names."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from cjepa_dist.config.fields import default_of, leaf_fields
from cjepa_dist.config.merge import flatten
from cjepa_dist.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./+-]*", re.ASCII)  # needs no quotes in a list


def combinations(
    fields: dict[str, Any], schema: type, sweep: str
) -> list[tuple[str, dict[str, Any]]]:
    """(suffix for a name, fields with one value each) of every combination of swept fields."""
    flat = dict(flatten(fields))
    sweeps = {key: value for key, value in flat.items() if is_swept(key, value, schema)}
    if empty := [key for key, values in sweeps.items() if not values]:
        raise UserError(f"config field {empty[0]}: a sweep needs at least one value")
    if sweep == "zip" and len({len(values) for values in sweeps.values()}) > 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in sweeps.items())
        raise UserError(
            f"sweep=zip needs lists of one length: {lengths}; sweep=cross takes every combination"
        )
    combine = zip if sweep == "zip" and sweeps else itertools.product
    chosen = [dict(zip(sweeps, values)) for values in combine(*sweeps.values())]
    return [
        (
            "".join(f"+{key}_{folder_name_part(value)}" for key, value in one.items()),
            {**flat, **one},
        )
        for one in chosen
    ]


def without_sweeps(fields: dict[str, Any], schema: type) -> dict[str, Any]:
    return {key: value for key, value in flatten(fields) if not is_swept(key, value, schema)}


def is_swept(key: str, value: Any, schema: type) -> bool:
    """Whether it lists several values of a field, and is no value of a field that takes a list."""
    if not isinstance(value, list):
        return False
    takes_list = any(
        name == key and isinstance(default_of(field), list) for name, field in leaf_fields(schema)
    )
    return not takes_list or any(isinstance(each, list) for each in value)


def folder_name_part(value: Any) -> str:
    """A value in a folder's name: without `/`, and without the commas between a report's runs."""
    return as_argument(value).replace("/", "-").replace(",", "-").replace(" ", "")


def to_arguments(fields: dict[str, Any]) -> list[str]:
    return [f"{key}={as_argument(value)}" for key, value in flatten(fields)]


def as_argument(value: Any) -> str:
    """A value as one types it: text as it is, lists as [a, b]; quoted only where YAML needs it."""
    if isinstance(value, list):
        return f"[{', '.join(list_item(item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def list_item(value: Any) -> str:
    if isinstance(value, str) and (not PLAIN.fullmatch(value) or value.lower() == "null"):
        return json.dumps(value, ensure_ascii=False)
    return as_argument(value)
