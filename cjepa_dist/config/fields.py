"""How a config field is declared, and how the fields of a schema are listed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from typing import Any


def option(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: Collection[str] = (),
    least: float | None = None,
) -> Any:
    """A config field: its default (a dataclass type for a section), meaning, unit, allowed values.

    `choices` are read at each check, so that plugins can add to a list.
    """
    metadata = {"meaning": meaning, "unit": unit, "choices": choices, "least": least}
    if isinstance(default, (type, list, dict)):
        factory = default if isinstance(default, type) else (lambda: type(default)(default))
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def leaf_fields(schema: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """All leaf fields with their dotted names."""
    hints, found = typing.get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            found += leaf_fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, field))
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, also where a factory makes it."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
