"""Arrays in files of the usual formats, each read only when it is needed.

    x.npy, x.npz, x.safetensors, x.h5 ──open_arrays──> {name: StoredArray(shape, dtype, read)}

All formats except HDF5 and compressed .npz keep an array as plain memory at an offset: it is memory
mapped while it is read. Whatever the file says of it, one read gives at most MOST_ARRAY_BYTES, in
the byte order of this machine; long doubles are read as float64.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.archive import check_member, open_zip, read_members
from cjepa_dist.data.format.dtypes import to_float32, to_native
from cjepa_dist.errors import UserError

MOST_ARRAY_BYTES = 256 << 20  # of one read: a video
MOST_NPY_HEADER = 1 << 16
MOST_SAFETENSORS_HEADER = 16 << 20
MOST_DATASETS = 10**6  # in an HDF5 file
OPEN_FILES = 4  # that stay open, since opening one reads its table of contents
SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
}


@dataclass(frozen=True)
class StoredArray:
    """An array in a file. `read(None)` reads all of it, `read(i)` row i; bfloat16 as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int | None], np.ndarray]


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by name ("" in a .npy).

    Raises UserError, naming the file, if it is damaged.
    """
    with as_user_error(path):
        found = FORMATS[path.suffix.lower()](path)
        return {
            name: StoredArray(a.shape, a.dtype, partial(read_guarded, path, a.read))
            for name, a in found.items()
        }


def read_guarded(
    path: Path, read: Callable[[int | None], np.ndarray], row: int | None
) -> np.ndarray:
    with as_user_error(path):
        return to_native(read(row))


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory, or is damaged") from error
    except Exception as error:  # a damaged file can fail in any way: tokenize, zlib, HDF5, ...
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from error


def check_size(shape: tuple[int, ...], itemsize: int, row: int | None) -> None:
    """Raises ValueError for what is no shape, and for more than one video can be."""
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    if (size := math.prod(shape if row is None else shape[1:]) * itemsize) > MOST_ARRAY_BYTES:
        raise ValueError(
            f"an array of {size / 2**20:.0f} MiB where a video must be, of at most"
            f" {MOST_ARRAY_BYTES >> 20} MiB"
        )


def memory_mapped(
    path: Path,
    dtype: np.dtype,
    shape: tuple[int, ...],
    offset: int,
    order: Any = "C",
    bfloat16: bool = False,
) -> StoredArray:
    if any(size < 0 for size in shape) or offset < 0:
        raise ValueError(f"an array of shape {shape} at byte {offset}")
    if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise ValueError("it ends early")

    def read(row: int | None) -> np.ndarray:
        check_size(shape, dtype.itemsize, row)
        array = np.memmap(path, dtype, "r", offset, shape, order)
        content = np.array(array if row is None else array[row])
        return to_float32(content) if bfloat16 else content

    return StoredArray(shape, "bfloat16" if bfloat16 else dtype.name, read)


def read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy; leaves the file at the start of the data."""
    version = np.lib.format.read_magic(file)
    first = version == (1, 0)
    start = file.read(2 if first else 4)
    if (length := int.from_bytes(start, "little")) > MOST_NPY_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = io.BytesIO(start + file.read(length))
    layout = np.lib.format
    read = layout.read_array_header_1_0 if first else layout.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's: what Python 2 wrote
        shape, fortran, dtype = read(header)
    if dtype.hasobject:
        raise ValueError("it is an array of objects; only numbers can be read")
    return shape, fortran, dtype


def open_npy(path: Path) -> dict[str, StoredArray]:
    with open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file)
        return {"": memory_mapped(path, dtype, shape, file.tell(), "F" if fortran else "C")}


def open_npz(path: Path) -> dict[str, StoredArray]:
    found = {}
    archive, _ = open_archive(*file_version(path))
    with open(path, "rb") as file:
        for info in archive.infolist():
            check_member(info)
            with archive.open(info) as member:
                shape, fortran, dtype = read_npy_header(member)
                start = member.tell()
            order = "F" if fortran else "C"
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset + 26)
                names = file.read(4)
                skip = (
                    30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
                )
                found[name] = memory_mapped(
                    path, dtype, shape, info.header_offset + skip + start, order
                )
            else:
                layout = (shape, order, dtype)
                read = functools.partial(read_compressed, path, info.filename, start, layout)
                found[name] = StoredArray(shape, dtype.name, read)
    return found


def read_compressed(
    path: Path, name: str, start: int, layout: tuple[Any, Any, np.dtype], row: int | None
) -> np.ndarray:
    """An array of a compressed .npz, from byte `start` of its member."""
    shape, order, dtype = layout
    if row is not None:  # every row would decompress all of them
        raise UserError(
            f"{path}: {name} holds all videos, compressed; save them one by one, or with np.savez"
        )
    check_size(shape, dtype.itemsize, row)
    archive, _ = open_archive(*file_version(path))
    content = read_members(archive, [name], MOST_ARRAY_BYTES + MOST_NPY_HEADER)[name]
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


def file_version(path: Path) -> tuple[Path, int, int]:
    """What tells a file from one that was there before: for the files that stay open."""
    about = path.stat()
    return path, about.st_mtime_ns, about.st_size


@functools.lru_cache(OPEN_FILES)
def open_archive(path: Path, *version: int) -> tuple[zipfile.ZipFile, Any]:
    """An archive and its file; a folder may have more files than a process may open."""
    file = open(path, "rb")  # noqa: SIM115  (closed when it leaves the cache)
    return open_zip(file), file


def open_safetensors(path: Path) -> dict[str, StoredArray]:
    """The format: a length (8 bytes), JSON {name: {dtype, shape, data_offsets}}, then the memory.

    So no tensor library is needed to map it.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, MOST_SAFETENSORS_HEADER):
            raise ValueError("it is not a safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        dtype, shape, start = (
            np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]),
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        )
        if entry["data_offsets"][1] - entry["data_offsets"][0] != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the length of tensor {name} does not fit its shape")
        found[name] = memory_mapped(path, dtype, shape, start, bfloat16=entry["dtype"] == "BF16")
    return found


def open_hdf5(path: Path) -> dict[str, StoredArray]:
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: reading HDF5 needs h5py, which is not installed; pip install h5py"
        ) from None
    found: dict[str, StoredArray] = {}

    def visit(name: str, node: Any) -> None:
        if len(found) >= MOST_DATASETS:
            raise ValueError(f"it holds more than {MOST_DATASETS} arrays")
        if isinstance(node, h5py.Dataset):
            if node.external or node.is_virtual:
                raise ValueError(f"{name} is in other files; copy it into this one")
            read = functools.partial(read_hdf5, path, name)
            shape = node.shape or ()
            found[name] = StoredArray(shape, node.dtype.name, read)

    open_hdf5_file(*file_version(path)).visititems(visit)
    return found


def read_hdf5(path: Path, name: str, row: int | None) -> np.ndarray:
    node = open_hdf5_file(*file_version(path))[name]
    check_size(node.shape, node.dtype.itemsize, row)
    check_size(node.chunks or (), node.dtype.itemsize, None)  # of which one is always read whole
    return node[()] if row is None else node[row]


@functools.lru_cache(OPEN_FILES)
def open_hdf5_file(path: Path, *version: int) -> Any:
    import h5py

    return h5py.File(path, "r")  # closed when it leaves the cache


FORMATS: dict[str, Callable[[Path], dict[str, StoredArray]]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
}
