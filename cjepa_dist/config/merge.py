"""Config layers (defaults <- YAML file <- key=value) merged and checked against a schema."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cjepa_dist.config.fields import default_of, leaf_fields
from cjepa_dist.config.plugins import import_plugins
from cjepa_dist.errors import UserError

ConfigT = TypeVar("ConfigT")  # the dataclass of an entry point


def build(schema: type[ConfigT], *layers: Any) -> ConfigT:
    """Merge layers (mappings; later ones win) over the schema's defaults, and check the result.

    Modules in a field `plugins` are imported before values are checked. Raises UserError naming the
    field.
    """
    merged = OmegaConf.structured(schema)
    for layer in layers:
        check_keys(schema, layer)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(
                f"config field {error.full_key}: {str(error).splitlines()[0]}"
            ) from error
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise UserError(f"missing: {', '.join(f'{k}=...' for k in missing)}; see --help")
    config = typing.cast(ConfigT, OmegaConf.to_object(merged))
    import_plugins(getattr(config, "plugins", []))  # first: they may add to the allowed values
    check_values(config)
    return config


def read_yaml(path: str | Path) -> Any:
    """A YAML mapping. Raises UserError if the file is missing or is not one."""
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except Exception as error:
        raise UserError(f"config file {path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(content):
        raise UserError(f"config file {path} must hold key: value pairs")
    return content


def save_yaml(config: Any, path: str | Path) -> None:
    """Write a dataclass instance as YAML."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def check_keys(schema: type, layer: Any) -> None:
    """Raises UserError for a key that the schema does not have, naming the nearest that it has."""
    fields = leaf_fields(schema)
    known = [name for name, _ in fields]
    tables = tuple(f"{name}." for name, field in fields if isinstance(default_of(field), dict))
    for key in leaf_keys(OmegaConf.to_container(layer) if OmegaConf.is_config(layer) else layer):
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


def check_values(config: Any, prefix: str = "") -> None:
    """Raises UserError for a value that is not one of the choices, or is too small."""
    for field in dataclasses.fields(config):
        value, meta = getattr(config, field.name), field.metadata
        if dataclasses.is_dataclass(value):
            check_values(value, f"{prefix}{field.name}.")
            continue
        given = f"config field {prefix}{field.name}={value!r}"
        if meta.get("choices") and value not in meta["choices"]:
            raise UserError(f"{given}: must be one of {', '.join(meta['choices'])}")
        if meta.get("least") is not None and value < meta["least"]:
            raise UserError(f"{given}: must be at least {meta['least']}")
