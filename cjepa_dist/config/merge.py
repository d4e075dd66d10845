"""Config layers (defaults <- YAML file <- key=value) merged and checked against a schema.

The schema gives every value its type (`values.py`), so a text field gets its text verbatim.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cjepa_dist.config import values, yaml_text
from cjepa_dist.config.fields import MISSING, default_of, leaf_fields
from cjepa_dist.config.plugins import import_plugins
from cjepa_dist.errors import UserError, without_secrets

ConfigT = TypeVar("ConfigT")  # the dataclass of an entry point


def build(schema: type[ConfigT], *layers: Mapping[str, Any]) -> ConfigT:
    """Merge layers (mappings; later ones win) over the schema's defaults, and check the result.

    Keys may have dots. Modules in a field `plugins` are imported before values are checked. Raises
    UserError naming the field.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        layer = expand_keys(schema, layer)
        check_keys(schema, layer)
        merge_into(merged, layer)
    missing: list[str] = []
    config = fill(schema, merged, "", missing)
    if missing:
        raise UserError(f"missing: {', '.join(f'{k}=...' for k in sorted(missing))}; see --help")
    import_plugins(getattr(config, "plugins", []))  # first: they may add to the allowed values
    check_choices(config)
    return typing.cast(ConfigT, config)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping, its scalars as text. Raises UserError if it is missing or is not one."""
    try:
        content = yaml_text.load(path)
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"config file {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"config file {path} must hold key: value pairs")
    return content


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value ... of a command line as a layer; the value is all that follows the first `=`."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        found.pop(key, None)  # so that the last one is the last
        found[key] = values.Word(value)
    return found


def save_yaml(config: Any, path: str | Path) -> None:
    """Write a dataclass instance as YAML, without the passwords of URLs."""
    content = masked(dataclasses.asdict(config))
    Path(path).write_text(yaml_text.dump(content), encoding="utf-8")


def masked(tree: Any) -> Any:
    """The same values without user and password in URLs."""
    if isinstance(tree, dict):
        return {key: masked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [masked(value) for value in tree]
    return without_secrets(tree, "") if isinstance(tree, str) else tree


def expand_keys(schema: type, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections from keys with dots, as far as the schema has sections or tables."""
    hints = typing.get_type_hints(schema)
    found: dict[str, Any] = {}
    for name, value in layer.items():
        first, _, rest = str(name).partition(".")
        kind = hints.get(first)
        if rest and dataclasses.is_dataclass(kind):
            value, name = {rest: value}, first
        elif rest and typing.get_origin(kind) is dict:
            free = typing.get_args(kind)[1] is Any
            keys = rest.split(".") if free else [rest]
            for key in reversed(keys):
                value = {key: value}
            name = first
        section = kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
        if isinstance(value, str) and (section or typing.get_origin(kind) is dict):
            value = values.parsed(value, dict, first)
        if section:
            if not isinstance(value, Mapping) and value is not None:
                raise values.refusal(
                    first, value, "is a section: give its fields, as section.field"
                )
            value = expand_keys(section, value or {})
        merge_into(found, {str(name): value})
    return found


def merge_into(tree: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a nested mapping over another; everything but mappings is replaced."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            merge_into(tree[key], value)
        else:
            tree.pop(key, None)
            tree[key] = copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value


def fill(schema: type, given: Mapping[str, Any], prefix: str, missing: list[str]) -> Any:
    """An instance of the schema; `missing` gets the fields that have no value."""
    hints, found = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        kind, key = hints[field.name], prefix + field.name
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found[field.name] = fill(kind, given.get(field.name, {}), f"{key}.", missing)
        elif field.name in given and (given[field.name], default_of(field)) != ("", MISSING):
            found[field.name] = values.convert(given[field.name], kind, field.metadata, key)
        elif default_of(field) == MISSING:
            missing.append(key)
    return schema(**found)


def check_keys(schema: type, layer: Any) -> None:
    """Raises UserError for a key that the schema does not have, naming the nearest that it has."""
    fields = leaf_fields(schema)
    known = [name for name, _ in fields]
    tables = tuple(f"{name}." for name, field in fields if isinstance(default_of(field), dict))
    for key in leaf_keys(layer):
        if key.startswith(tables):  # the keys of a table are free
            continue
        if key not in known and not any(name.startswith(key + ".") for name in known):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"unknown config key {key}; the nearest is {near[0]}")


def leaf_keys(tree: Any, prefix: str = "") -> list[str]:
    """The dotted keys of everything in nested mappings that is not a mapping."""
    if not isinstance(tree, dict):
        return [prefix.removesuffix(".")]
    return [leaf for key, value in tree.items() for leaf in leaf_keys(value, f"{prefix}{key}.")]


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is not a mapping."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check_choices(config: Any, prefix: str = "") -> None:
    """Raises UserError for a value that is not one of the choices of its field."""
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata.get("choices")
        if dataclasses.is_dataclass(value):
            check_choices(value, f"{prefix}{field.name}.")
        elif choices and value not in choices:
            reason = f"must be one of {', '.join(choices)}"
            raise values.refusal(prefix + field.name, value, reason)
