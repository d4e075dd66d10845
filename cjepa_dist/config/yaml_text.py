"""YAML whose scalars stay text: the type of a value is the schema's to say, not YAML's.

    seed: 010, run: 008, train_split: no ──> "010", "008", "no"       (YAML 1.1: 8, "008", False)

A plain `~`, `null` or nothing is None, as in YAML. Anchors and lists work as usual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 16 << 20  # of a config file; the largest of this project has a few kB


class TextLoader(yaml.BaseLoader):
    """yaml.BaseLoader, which leaves scalars as text, with None and without repeated keys."""

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        empty = node.style is None and text in ("", "~", "null", "Null", "NULL")
        return None if empty else text

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} is there twice", node.start_mark
            )
        return found


def parse(text: str) -> Any:
    """Lists and mappings of text. Raises ValueError with one line for what is not YAML."""
    try:
        return yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{problem or ' '.join(str(error).split())}{place}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load(path: str | Path) -> Any:
    """The content of a file, a pipe too. Raises OSError; ValueError for what is not YAML."""
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    return parse(content.decode("utf-8-sig"))  # UnicodeDecodeError is a ValueError


def dump(content: dict[str, Any]) -> str:
    """Plain values as YAML that `load` reads back: text that looks like anything else is quoted."""
    return yaml.safe_dump(content, default_flow_style=False, allow_unicode=True, sort_keys=False)
