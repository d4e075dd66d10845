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
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=1, allow_nan=False))


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file that belong to steps after `step`.

    A run that is resumed after `step` repeats the later steps. An incomplete last line, which a
    full disk leaves, is dropped too.
    """
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = (line for line in lines if json.loads(line)["step"] <= step)
        write_text_atomic(path, "".join(kept))


def free_bytes(folder: Path) -> int:
    """Free bytes on the file system of `folder`, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
