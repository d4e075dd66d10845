"""Reads zip archives (.npz and torch.save files) within limits on their members and their size.

A zip of some MB can unpack to any size, and a table of contents alone can take much memory. Only
members that are stored or deflated are read: numpy and torch write no others.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Sequence
from typing import Any

MOST_UNPACKED = 1 << 30  # of what is read from one archive in a shard
MOST_CONTENTS = 64 << 20  # bytes of the table of contents, at least 46 a member
COMMENT_BYTES = 1 << 16  # the longest comment that may follow the end record


def open_zip(file: Any) -> zipfile.ZipFile:
    """An archive of an open file. ValueError if it is damaged, or its contents are too many."""
    check_contents(file)
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # struct, RuntimeError, BadZipFile, ...
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # it cannot be read, which is no damage
        raise ValueError(str(error) or type(error).__name__) from error


def check_contents(file: Any) -> None:
    """ValueError if the table of contents is larger than MOST_CONTENTS: zipfile reads all of it."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - COMMENT_BYTES - 22 - 20)
    file.seek(start)
    tail = file.read(size - start)
    place, declared = tail.rfind(b"PK\5\6"), 0
    if place >= 0:
        declared = int.from_bytes(tail[place + 12 : place + 16], "little")
        if declared == 0xFFFFFFFF:
            declared = 0
        if place >= 20 and tail[place - 20 : place - 16] == b"PK\6\7":  # zip64
            file.seek(min(size, int.from_bytes(tail[place - 12 : place - 4], "little")))
            record = file.read(56)
            declared = max(declared, int.from_bytes(record[40:48], "little"))
    if declared > MOST_CONTENTS:
        raise ValueError(f"its table of contents has more than {MOST_CONTENTS >> 20} MiB")
    file.seek(0)


def check_member(info: zipfile.ZipInfo) -> None:
    """ValueError for a member that is encrypted, or compressed as numpy and torch never do."""
    if info.flag_bits & 1:
        raise ValueError(f"{info.filename} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")


def read_members(
    archive: zipfile.ZipFile, names: Sequence[str], most: int = MOST_UNPACKED
) -> dict[str, bytes]:
    """Members by name. ValueError if one is damaged, or if they unpack to more than `most` bytes.

    KeyError for a name that the archive does not have.
    """
    infos = [archive.getinfo(name) for name in names]
    for info in infos:
        check_member(info)
    if (size := sum(info.file_size for info in infos)) > most:
        raise ValueError(f"it unpacks to {size} bytes, more than {most}")
    try:
        return {info.filename: archive.read(info) for info in infos}
    except Exception as error:  # zlib, struct, RuntimeError, BadZipFile, EOFError, ...
        raise ValueError(f"{type(error).__name__}: {error}") from error
