"""The public files: where they are, and what is known of their bytes.

public_files.yaml, table= ──read_table──> {group: [PublicFile]} ──choose──> the files of what=
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from cjepa_dist.config.merge import read_yaml
from cjepa_dist.errors import UserError

OUR_TABLE = Path(__file__).with_name("public_files.yaml")
HUB_FIELDS = {"repo", "file", "revision", "type"}


@dataclass(frozen=True)
class PublicFile:
    """A file to download. `bytes` and `sha256` are None where nobody has published them."""

    path: str  # in OUT, and on a mirror
    url: str = ""
    hub: dict[str, str] | None = None  # on the Hugging Face hub: repo, file, [revision, type]
    bytes: int | None = None
    sha256: str | None = None
    about_mb: int = 0
    unpack: str = ""  # folder in OUT for the content of a zip


def read_table(own: str = "") -> dict[str, list[PublicFile]]:
    """The files by group; those of the user's table `own` replace fields of ours, or are new.

    Raises UserError, naming the file and the entry, for a field that makes no sense.
    """
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for table in (OUR_TABLE, *([Path(own)] if own else [])):
        for group, entries in (read_yaml(table) or {}).items():
            if not isinstance(entries, dict):
                raise UserError(f"{table}: {group} must be files by their path in OUT")
            for path, about in entries.items():
                facts = checked_entry(f"{table}: {group}: {path}", str(path), about)
                merged.setdefault(str(group), {}).setdefault(str(path), {}).update(facts)
    table_of = {
        group: [PublicFile(path, **about) for path, about in entries.items()]
        for group, entries in merged.items()
    }
    for group, files in table_of.items():
        for file in files:
            if bool(file.url) == bool(file.hub):
                raise UserError(f"{own}: {group}: {file.path} needs url or hub, one of them")
    return table_of


def checked_entry(where: str, path: str, about: Any) -> dict[str, Any]:
    """The fields of a file in a table, numbers as such. UserError for one that makes no sense."""
    known = {field.name for field in fields(PublicFile)} - {"path"}
    if not isinstance(about, dict) or set(about) - known:
        raise UserError(f"{where} must have some of the fields {', '.join(sorted(known))}")
    for place in (path, about.get("unpack") or "folder"):
        parts = PurePosixPath(str(place)).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise UserError(f"{where}: {place} is no path inside of OUT")
    digest, hub, numbers = about.get("sha256"), about.get("hub"), {}
    for name in {"bytes", "about_mb"} & set(about):
        if not re.fullmatch(r"[0-9]{1,15}", str(about[name])):
            raise UserError(f"{where}: {name}={about[name]} is no number")
        numbers[name] = int(about[name])
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise UserError(f"{where}: sha256={digest} is not 64 digits of 0-9 and a-f")
    if hub is not None and not (
        isinstance(hub, dict) and {"repo", "file"} <= set(hub) and set(hub) <= HUB_FIELDS
    ):
        raise UserError(f"{where}: hub needs repo and file, and may have revision and type")
    return {**about, **numbers}


def choose(table: dict[str, list[PublicFile]], what: Sequence[str]) -> list[PublicFile]:
    """The files of some groups, each once. Raises UserError with the known groups."""
    if unknown := [group for group in what if group not in table]:
        raise UserError(
            f"config field what: {unknown[0]!r} is none of {', '.join(table)};"
            " table=FILE can add groups"
        )
    return list({file.path: file for group in what for file in table[group]}.values())
