"""Bytes of a shard, read and written without tarfile's streams, which are slower and forgive too much.

tar:  header (512 bytes) | content, padded to 512 | header | ... | two zero blocks
npy:  magic, version, length | header: type, order, shape | data
"""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 512
RECORD = 20 * BLOCK  # a tar ends at a multiple of this


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes are in its shard."""

    offset: int
    length: int


class Part(io.RawIOBase):
    """A member as a seekable file: zipfile then reads the arrays that are asked for and leaves the others on the disk."""

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


def parse_header(header: bytes) -> tuple[str, int]:
    """(name, length) of a ustar header of a plain file. ValueError if it is anything else."""
    if len(header) < BLOCK:
        raise ValueError("the file ends without the tar's end mark")
    stored = header[148:156].rstrip(b"\0 ") or b"x"
    if int(stored, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError("the header's checksum is wrong")
    if header[156:157] not in (b"0", b"\0"):
        raise ValueError(f"an entry of type {header[156:157]!r}, only plain files belong here")
    name, prefix = header[:100].rstrip(b"\0").decode(), header[345:500].rstrip(b"\0").decode()
    return f"{prefix}/{name}" if prefix else name, int(header[124:136].rstrip(b"\0 "), 8)


def npy_header(start: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, offset of the data) from the first bytes of a .npy of version 1, C order, no objects. ValueError otherwise."""
    if start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("no .npy of version 1")
    end = 10 + int.from_bytes(start[8:10], "little")
    shape, dtype = npy_layout(start[8:end])
    return shape, dtype, end


@functools.lru_cache(maxsize=1024)
def npy_layout(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    # The literal parser behind this costs more than reading a video; all videos share a handful of headers.
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if fortran or dtype.hasobject:
        raise ValueError("array in Fortran order or of objects")
    return shape, dtype


def parse_npy(content: bytes) -> np.ndarray:
    shape, dtype, start = npy_header(content)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def tar_pieces(name: str, content: list[Any]) -> list[Any]:
    """A member as buffers to write one after the other: header, `content` (buffers), padding; bytes as webdataset's TarWriter has them."""
    size = sum(memoryview(piece).nbytes for piece in content)
    start, blank = name.encode(), tar_blank(size)
    if len(start) > 100:
        raise ValueError(f"{name}: a name in a tar has at most 100 bytes")
    header = (
        start.ljust(100, b"\0")
        + blank[100:148]
        + b"%06o\0" % (int(blank[148:154], 8) + sum(start))
        + blank[155:]
    )
    return [header, *content, bytes(-size % BLOCK)]


@functools.lru_cache(maxsize=1024)
def tar_blank(size: int) -> bytes:
    """The header of a member without a name: most have one of a few sizes, and tarfile takes longer for one than its slots to be hashed."""
    member = tarfile.TarInfo()
    member.size, member.mode, member.uname, member.gname = size, 0o444, "bigdata", "bigdata"
    return member.tobuf(tarfile.USTAR_FORMAT)


def tar_end(size: int) -> bytes:
    """What ends a tar of `size` bytes: two zero blocks, and zeros up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


def npy_pieces(array: np.ndarray) -> list[Any]:
    """A .npy of version 1 as two buffers: header, data."""
    array = np.ascontiguousarray(array) if array.ndim else array
    return [
        npy_start(array.dtype, array.shape),
        array.reshape(-1).view(np.uint8).data if array.size else b"",
    ]


@functools.lru_cache(maxsize=1024)
def npy_start(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, layout)
    return buffer.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz like np.savez, with fixed times. Stored: deflating noisy float16 saves a tenth and costs ten times the write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                b"".join(npy_pieces(arrays[name])),
            )
    return buffer.getvalue()


def to_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
