"""How a config field is declared, and how the fields of a schema are listed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from typing import Any

from omegaconf import MISSING as MISSING  # the default of a field that must be given

MOST = 1e9  # of any number whose field says nothing else: more is a slip of the finger
MAX_SEED = 2**63 - 1


def option(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    choices: Collection[str] = (),
    least: float | None = None,
    most: float | None = None,
    path: bool = False,
) -> Any:
    """A config field: its default (a dataclass type for a section), meaning, unit, allowed values.

    `choices` are read at each check, so that plugins can add to a list. `least` and `most` are the
    range of a number, or of each number of a list or mapping; every field of numbers has a `least`.
    `path`: a file or folder, where ~ is the home folder.
    """
    limit = MOST if most is None and least is not None else most
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "choices": choices,
        "least": least,
        "most": limit,
        "path": path,
    }
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


def range_text(field: dataclasses.Field[Any]) -> str:
    """The range of a number for --help: "0 to 1", "at least 1"; "" where there is none."""
    least, most = field.metadata["least"], field.metadata["most"]
    if least is None:
        return "" if most is None else f"at most {most:g}"
    if most == MAX_SEED:
        return f"{least:g} to 2^63-1"
    return f"at least {least:g}" if most is None or most == MOST else f"{least:g} to {most:g}"
