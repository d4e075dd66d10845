"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import xxhash


def file_checksum(path: str | Path) -> str:
    """xxh3 (64 bit, hex) of a file, read in pieces of 4 MiB."""
    digest = xxhash.xxh3_64()
    buffer = memoryview(bytearray(1 << 22))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def fsync_directory(folder: str | Path) -> None:
    """Flush a folder's list of names: a rename is safe from a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file whole, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False))
    os.replace(temporary, path)


def free_bytes(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    os.replace(temporary, path)
