"""Walks the headers of a tar: where each file in it is, whoever wrote it.

    ours, webdataset   ustar headers
    GNU tar            long names in members of type L
    BSD tar, pax       records in members of types x (of the next member) and g (of all after it)

Not with tarfile, on which webdataset is built: to it a damaged header, or the end of a file that
was cut, is the end of the tar. Here a tar goes on to its two zero blocks; all else is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cjepa_dist.data.format.tar import BLOCK_BYTES, Extent, parse_header

ZEROS = bytes(BLOCK_BYTES)
MOST_EXTENSION = 1 << 20  # bytes of a pax header or a long name
FILE, FOLDER, PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK = b"0", b"5", b"x", b"g", b"L", b"K"


class TarError(ValueError):
    """What is wrong with a tar, and at which byte."""


def tar_members(descriptor: int, size: int, start: int = 0) -> Iterator[tuple[str, Extent]]:
    """(name, extent) of each plain file of a tar from byte `start` of an open file, up to `size`.

    Folders are left out, `./` before a name too. Raises TarError for anything but a whole tar of
    plain files and folders.
    """
    offset, name = start, "(none)"
    common: dict[str, str] = {}  # pax records of all members
    special: dict[str, str] = {}  # those of the next one
    while True:
        header = os.pread(descriptor, BLOCK_BYTES, offset)
        if header == ZEROS and os.pread(descriptor, BLOCK_BYTES, offset + BLOCK_BYTES) == ZEROS:
            if special:
                raise TarError(f"at byte {offset}, after {name}: a header of no member")
            return
        place = f"at byte {offset}, after {name}"
        try:
            kind, found, length = parse_header(header)
            if kind != FILE and kind not in (FOLDER, PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK):
                raise ValueError(f"an entry of type {kind!r}; only plain files belong here")
            content = offset + BLOCK_BYTES
            if kind in (PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK):
                if length > MOST_EXTENSION:
                    raise ValueError(f"a header of {length} bytes")
                text = os.pread(descriptor, length, content)
                if content + length > size or len(text) < length:
                    raise ValueError("the file ends within a header")
                if kind == LONG_NAME:
                    special["path"] = text.rstrip(b"\0").decode()
                elif kind != LONG_LINK:
                    (special if kind == PAX else common).update(pax_records(text))
            elif common or special:
                records = common | special
                found, length = extended(found, length, records)
                special = {}
        except ValueError as error:
            raise TarError(f"{place}: {error}") from None
        if kind in (FILE, FOLDER):
            name = found.removeprefix("./")
            if kind == FOLDER:
                length = 0  # some writers say the bytes that a folder has on their disk
            elif content + length > size:
                raise TarError(f"at byte {offset}: the file ends within {name}")
            else:
                yield name, Extent(content, length)
        offset = content + -(-length // BLOCK_BYTES) * BLOCK_BYTES


def pax_records(text: bytes) -> dict[str, str]:
    """The records of a pax header: `LENGTH KEY=VALUE`, each ended by a new line.

    ValueError for anything else, and for a sparse file, whose bytes are not its content.
    """
    records, at = {}, 0
    while at < len(text):
        digits, space, _ = text[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise ValueError("a pax header is damaged")
        end = at + int(digits)
        name, equals, value = text[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end > len(text) or text[end - 1 : end] != b"\n":
            raise ValueError("a pax header is damaged")
        if name.startswith(b"GNU.sparse."):
            raise ValueError("a sparse file; only plain files belong here")
        if name in (b"path", b"size"):  # times, owners and comments do not matter
            records[name.decode()] = value.decode()
        at = end
    return records


def extended(name: str, length: int, records: dict[str, str]) -> tuple[str, int]:
    """Name and length of a member, after its pax records."""
    if (text := records.get("size")) is not None:
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ValueError(f"size {text[:40]!r} of a pax header")
        length = int(text)
    return records.get("path") or name, length
