"""What has been downloaded: OUT/downloads.json, and the checks that a file must pass to get there.

    file ──length, sha256, content──> {path: {url, bytes, sha256, known_from, unpacked}}

A checksum that nobody has published is recorded at the first download, and compared later.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cjepa_dist.data.format.archive import open_zip
from cjepa_dist.errors import ContentError, UserError
from cjepa_dist.runtime.files import write_json
from data_prep.annotations import iterate_entries
from data_prep.download.table import PublicFile

RECORD_NAME = "downloads.json"


class Record:
    """The record of a folder: facts of each file by its path in it."""

    def __init__(self, out: Path) -> None:
        """Raises UserError for a damaged record."""
        self.path = out / RECORD_NAME
        self.files: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self.files = dict(json.loads(self.path.read_bytes()))
            except (ValueError, TypeError) as error:
                raise UserError(f"{self.path} is damaged ({error}); remove it") from error

    def __getitem__(self, path: str) -> dict[str, Any]:
        return self.files.get(path, {})

    def write(self, path: str, **facts: Any) -> None:
        self.files[path] = {**self[path], **facts}
        write_json(self.path, dict(sorted(self.files.items())))


def known_digest(file: PublicFile, hub: str | None, recorded: str | None) -> tuple[str | None, str]:
    """(sha256, who says so): the table, the hub, the first download; (None, "") if nobody does."""
    for digest, who in (
        (file.sha256, "the table"),
        (hub, "the hub"),
        (recorded, f"{RECORD_NAME}, as first downloaded"),
    ):
        if digest:
            return digest, who
    return None, ""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as content:
        digest = hashlib.sha256()
        while chunk := content.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(path: Path, name: str, size: int | None, digest: str | None, who: str) -> str:
    """The sha256 of a file called `name`. ContentError if it, the length or the content is wrong.

    For what no checksum is known of, the content is all that can be checked: a login page that a
    proxy sent is no list of questions.
    """
    if size is not None and path.stat().st_size != size:
        raise ContentError(f"{path} has {path.stat().st_size} bytes; it should have {size}")
    found = sha256_of(path)
    if digest and found != digest:
        raise ContentError(f"{path}: its sha256 is {found}; it should be {digest} ({who})")
    if fault := content_fault(path, name):
        raise ContentError(f"{path} is not what it should be: {fault}")
    return found


def content_fault(path: Path, name: str) -> str:
    """What is wrong with a JSON file, zip or pickle, by the end of its name; "" if nothing is."""
    try:
        with open(path, "rb") as file:
            start = file.read(1)
            file.seek(-1, 2)
            end = file.read(1)
            if name.endswith(".zip"):
                open_zip(file).close()
            elif name.endswith(".pkl") and (start, end) != (b"\x80", b"."):
                return "no pickle, or one that was cut off"
        if name.endswith(".json"):
            for _ in iterate_entries(path):
                pass
    except (ValueError, UserError) as error:
        return str(error)
    except OSError as error:
        if path.stat().st_size:
            raise
        return f"it is empty ({error.strerror})"
    return ""
