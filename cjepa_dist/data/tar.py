"""Bytes of a shard: where a tar's members are, and arrays out of them without tarfile, which is slower and forgives too much.

tar:  header (512 bytes) | content, padded to 512 | header | ... | two zero blocks
npy:  magic, version, length | header: type, order, shape | data
"""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass

import numpy as np

BLOCK = 512
EXPONENT = {2: (np.uint16, 0x7C00), 4: (np.uint32, 0x7F800000), 8: (np.uint64, 0x7FF0000000000000)}


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
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.extent.length}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.extent.length - self.at)
        content = os.pread(self.descriptor, left if size is None or size < 0 else min(size, left), self.extent.offset + self.at)
        self.at += len(content)
        return content


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


def finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite: the exponent bits of none are all ones. On float16 far faster than np.isfinite."""
    if array.dtype.kind != "f":
        return True
    integer, mask = EXPONENT[array.dtype.itemsize]
    return not bool(((array.view(integer) & mask) == mask).any())
