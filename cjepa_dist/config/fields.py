"""How a config field is declared, and how the fields of a schema are listed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any


def option(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    least: float | None = None,
) -> Any:
    """A config field: its default (a dataclass type for a section), what it means, its unit, what it may be."""
    metadata = {"meaning": meaning, "unit": unit, "choices": tuple(choices), "least": least}
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
    """A field's default."""
    return field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[operator, misc]
