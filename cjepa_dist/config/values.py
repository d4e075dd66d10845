"""Turns what a user gave for a field into its type, or says in a line why it does not fit.

    text    verbatim: 008, 1e3, no, 1:30, "a #b", @x, ${c} and [x are text, quotes included
    numbers decimal: 010 is 10; within the field's range, and finite
    lists   [a, b], mappings {a: 1}, also key.a=1: YAML, whose scalars are text again
    paths   a ~ at the start is the home folder

Values come as text, from the command line and from files, or as Python objects from programs.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from cjepa_dist.config import yaml_text
from cjepa_dist.errors import UserError

WHOLE = re.compile(r"[+-]?\d{1,40}", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NOT_FINITE = ("nan", "inf", "infinity")
BOOLS = {"true": True, "yes": True, "on": True, "1": True}
BOOLS |= {"false": False, "no": False, "off": False, "0": False}


class Word(str):
    """A value as it was typed on a command line, where nothing but the text tells its type."""


def convert(value: Any, kind: Any, metadata: Mapping[str, Any], key: str) -> Any:
    """`value` as `kind` (a field's annotation). Raises UserError, naming the field `key`.

    `metadata` is that of `fields.option`: its range holds for each number of a list or mapping.
    """
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        raise TypeError(f"config field {key}: {kind} is no type of a field")
    if value is None:
        raise refusal(key, value, "has no value; leave the key out, or give one")
    if origin is list:
        items = parsed(value, list, key) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise refusal(key, value, "must be a list, such as [a,b]")
        return [
            convert(item, arguments[0], metadata, f"{key}[{i}]") for i, item in enumerate(items)
        ]
    if origin is dict:
        table = parsed(value, dict, key) if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            raise refusal(key, value, "must be a mapping, such as {a: 1}")
        return {
            str(name): convert(item, arguments[1], metadata, f"{key}.{name}")
            for name, item in table.items()
        }
    return to_scalar(value, kind, metadata, key)


def to_scalar(value: Any, kind: Any, metadata: Mapping[str, Any], key: str) -> Any:
    """A number, a bool, a text, or anything where the field takes anything."""
    if kind is Any:
        found = to_anything(value)
        return expand_home(found) if metadata.get("path") else found
    if kind is str:
        if not isinstance(value, str):
            raise refusal(key, value, "must be text")
        if "\0" in value:
            raise refusal(key, value, "must not hold the character NUL")
        return expand_home(value) if metadata.get("path") else str(value)
    if kind is bool:
        found = BOOLS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise refusal(key, value, "must be true or false")
        return found
    if kind is int:
        return in_range(to_int(value, key), metadata, key)
    if kind is float:
        return in_range(to_float(value, key), metadata, key)
    raise TypeError(f"config field {key}: {kind} is no type of a field")


def to_int(value: Any, key: str) -> int:
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise refusal(key, value, "must be a whole number")


def to_float(value: Any, key: str) -> float:
    found = math.inf
    if isinstance(value, str) and DECIMAL.fullmatch(value.strip()):
        found = float(value)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        if not isinstance(value, str) or value.strip().lower().lstrip("+-.") not in NOT_FINITE:
            raise refusal(key, value, "must be a number")
    else:
        with contextlib.suppress(OverflowError):
            found = float(value)
    if not math.isfinite(found):
        raise refusal(key, value, "must be a finite number")
    return found


def in_range(value: Any, metadata: Mapping[str, Any], key: str) -> Any:
    least, most = metadata.get("least"), metadata.get("most")
    if least is not None and value < least:
        raise refusal(key, value, f"must be at least {least}")
    if most is not None and value > most:
        raise refusal(key, value, f"must be at most {most}")
    return value


def parsed(text: str, kind: type, key: str) -> Any:
    """A list or mapping from its text on one line."""
    example = "a list, such as [a,b]" if kind is list else "a mapping, such as {a: 1}"
    try:
        found = yaml_text.parse(text)
    except ValueError as error:
        raise refusal(key, text, f"must be {example} ({error})") from None
    if not isinstance(found, kind):
        raise refusal(key, text, f"must be {example}")
    return found


def to_anything(value: Any) -> Any:
    """A value of a field that takes anything: `[a,b]` and `{a: 1}` of a command line are parsed."""
    if isinstance(value, Mapping):
        return {str(key): to_anything(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_anything(item) for item in value]
    if isinstance(value, Word) and (value[:1], value[-1:]) in (("[", "]"), ("{", "}")):
        with contextlib.suppress(ValueError):
            return yaml_text.parse(value)
    return str(value) if isinstance(value, str) else value


def expand_home(value: Any) -> Any:
    """Paths with ~ at the start as those of the home folder; `~name` of a user is its home."""
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def refusal(key: str, value: Any, reason: str) -> UserError:
    return UserError(f"config field {key}={shown(value)}: {reason}")


def shown(value: Any) -> str:
    """A value for a message: shortened."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 120
    try:
        return brief.repr(value)
    except ValueError:  # an int of thousands of digits
        return "a number with thousands of digits"
