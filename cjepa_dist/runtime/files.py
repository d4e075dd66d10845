"""Files that are written completely or not at all, and their checksums."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import xxhash


def file_checksum(path: str | Path) -> str:
    """xxh3 (64 bit, hex) of a file, read in blocks of 4 MiB."""
    digest = xxhash.xxh3_64()
    buffer = memoryview(bytearray(1 << 22))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def fsync_path(path: str | Path) -> None:
    """Flush a file, or the names in a folder: only then a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str, tag: str = "") -> None:
    """Write a text file completely or not at all.

    `tag` keeps the temporary files of several processes apart, where these write the same file.
    """
    temporary = path.with_name(".".join(filter(None, (path.name, tag, "partial"))))
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=1, allow_nan=False))


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line of a JSON-lines file with its mapping; none if there is no file.

    Blank lines and an incomplete last line, which a full disk or a kill leaves, are left out; so
    are lines that hold no mapping, with a warning that names them.
    """
    if not path.exists():
        return []
    found, garbled = [], []
    for number, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not row.strip():
            continue
        try:
            content = json.loads(line := row.decode())
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            found.append((line, content))
        else:
            garbled.append(str(number))
    if garbled:
        print(f"warning: {path}: left out, not JSON mappings: lines {', '.join(garbled)}")
    return found


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file that belong to steps after `step`, or to none.

    A run that is resumed after `step` repeats the later steps. The other lines stay as they are.
    """
    if path.exists():
        lines = [(line, content.get("step")) for line, content in read_json_lines(path)]
        kept = [line for line, at in lines if isinstance(at, (int, float)) and at <= step]
        write_text_atomic(path, "".join(f"{line}\n" for line in kept))


def free_bytes(folder: Path) -> int:
    """Free bytes on the file system of `folder`, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
