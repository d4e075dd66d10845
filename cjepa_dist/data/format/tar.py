"""Reads and writes the bytes of tar, npy and npz files.

    tar:  header (512 bytes) | content, padded to 512 | header | ... | two zero blocks
    npy:  magic, version, length | header: type, order, shape | data

Not with tarfile's streams: they are slower, and accept damaged files.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES  # a tar ends at a multiple of this


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes are in its shard."""

    offset: int
    length: int


class MemberFile(io.RawIOBase):
    """A member as a seekable file, of which zipfile reads only the arrays that are asked for."""

    def __init__(self, descriptor: int, extent: Extent) -> None:
        self.descriptor, self.extent, self.at = descriptor, extent, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(
            0,
            offset
            + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.extent.length}[whence],
        )
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        left = max(0, self.extent.length - self.at)
        count = os.preadv(
            self.descriptor, [memoryview(buffer)[:left]], self.extent.offset + self.at
        )
        self.at += count
        return count


def parse_header(header: bytes) -> tuple[bytes, str, int]:
    """(type, name, length) of a tar header; the type of a plain file is b"0".

    ValueError if it is damaged.
    """
    if len(header) < BLOCK_BYTES:
        raise ValueError("the file ends without the tar's end mark")
    if parse_octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError("the header's checksum is wrong")
    kind, name = header[156:157], header[:100].partition(b"\0")[0].decode()
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0].decode()):
        name = f"{prefix}/{name}"  # GNU tar keeps other things there
    return b"0" if kind in (b"\0", b"7") else kind, name, parse_octal(header[124:136])


def parse_octal(field: bytes) -> int:
    """A number of a tar header. ValueError for a sign or anything else that int() would take."""
    digits = field.strip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ValueError(f"{field!r} is no number of a header")
    return int(digits, 8)


def parse_npy_header(start: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, offset of the data) from the first bytes of a .npy.

    ValueError unless it is of version 1, in C order and without objects.
    """
    if start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("no .npy of version 1")
    end = 10 + int.from_bytes(start[8:10], "little")
    shape, dtype = parse_npy_layout(start[8:end])
    return shape, dtype, end


@functools.lru_cache(maxsize=1024)
def parse_npy_layout(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    # Parsing a header costs more than reading a video, and all videos share a few headers.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's: what Python 2 wrote
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    except Exception as error:  # of numpy, tokenize and ast, many of which are no ValueError
        raise ValueError(f"no header of an array: {type(error).__name__}") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"array of shape {shape}")
    if fortran or dtype.hasobject:
        raise ValueError("array in Fortran order or of objects")
    return shape, dtype


def parse_npy(content: bytes) -> np.ndarray:
    """An array from its bytes. ValueError if they are damaged."""
    shape, dtype, start = parse_npy_header(content)
    try:
        return np.frombuffer(content, dtype, offset=start).reshape(shape)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def tar_buffers(name: str, content: list[Any]) -> list[Any]:
    """A member as buffers to write one after the other: header, `content`, padding.

    The bytes are those of webdataset's TarWriter.
    """
    size = sum(memoryview(buffer).nbytes for buffer in content)
    start, template = name.encode(), header_template(size)
    if len(start) > 100:
        raise ValueError(f"{name}: a name in a tar has at most 100 bytes")
    header = (
        start.ljust(100, b"\0")
        + template[100:148]
        + b"%06o\0" % (int(template[148:154], 8) + sum(start))
        + template[155:]
    )
    return [header, *content, bytes(-size % BLOCK_BYTES)]


@functools.lru_cache(maxsize=1024)
def header_template(size: int) -> bytes:
    """The header of a member without a name.

    Cached, since members have few sizes, and tarfile takes longer for a header than hashing the
    slots takes.
    """
    member = tarfile.TarInfo()
    member.size, member.mode, member.uname, member.gname = size, 0o444, "bigdata", "bigdata"
    return member.tobuf(tarfile.USTAR_FORMAT)


def tar_end(size: int) -> bytes:
    """The end of a tar of `size` bytes: two zero blocks, and zeros up to a full record."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % RECORD_BYTES)


def npy_buffers(array: np.ndarray) -> list[Any]:
    """A .npy of version 1 as two buffers: header, data."""
    array = np.ascontiguousarray(array) if array.ndim else array
    return [
        npy_header(array.dtype, array.shape),
        array.reshape(-1).view(np.uint8).data if array.size else b"",
    ]


@functools.lru_cache(maxsize=1024)
def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz like np.savez, with fixed times.

    Not compressed: on noisy float16 that saves a tenth, and takes ten times as long.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                b"".join(npy_buffers(arrays[name])),
            )
    return buffer.getvalue()


def json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
