"""Arrays in files of the usual formats, each read only when it is needed.

    x.npy, x.npz, x.safetensors, x.h5 ──open_arrays──> {name: StoredArray(shape, dtype, read)}

All formats except HDF5 and compressed .npz keep an array as plain memory at an offset: it is memory
mapped while it is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.errors import UserError

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
        return read(row)


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def memory_mapped(
    path: Path,
    dtype: np.dtype,
    shape: tuple[int, ...],
    offset: int,
    order: Any = "C",
    bfloat16: bool = False,
) -> StoredArray:
    if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise ValueError("it ends early")

    def read(row: int | None) -> np.ndarray:
        array = np.memmap(path, dtype, "r", offset, shape, order)
        content = np.array(array if row is None else array[row])
        return to_float32(content) if bfloat16 else content

    return StoredArray(shape, "bfloat16" if bfloat16 else str(dtype), read)


def read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy; leaves the file at the start of the data."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it is an array of objects; only numbers can be read")
    return shape, fortran, dtype


def open_npy(path: Path) -> dict[str, StoredArray]:
    with open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file)
        return {"": memory_mapped(path, dtype, shape, file.tell(), "F" if fortran else "C")}


def open_npz(path: Path) -> dict[str, StoredArray]:
    found = {}
    archive = zipfile.ZipFile(path)  # stays open for `read`
    with open(path, "rb") as file:
        for info in archive.infolist():
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

                def read(
                    row: int | None,
                    info: Any = info,
                    start: int = start,
                    layout: Any = (shape, order, dtype),
                ) -> np.ndarray:
                    if row is not None:  # every row would decompress all of them
                        raise UserError(
                            f"{path}: {info.filename} holds all videos, compressed;"
                            " save them one by one, or with np.savez"
                        )
                    shape, order, dtype = layout
                    return np.frombuffer(archive.read(info), dtype, offset=start).reshape(
                        shape, order=order
                    )

                found[name] = StoredArray(shape, str(dtype), read)
    return found


def open_safetensors(path: Path) -> dict[str, StoredArray]:
    """The format: a length (8 bytes), JSON {name: {dtype, shape, data_offsets}}, then the memory.

    So no tensor library is needed to map it.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, 100 << 20):
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
    file = h5py.File(path, "r")  # stays open for `read`
    found: dict[str, StoredArray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = StoredArray(
                node.shape, str(node.dtype), lambda row: node[()] if row is None else node[row]
            )

    file.visititems(visit)
    return found


FORMATS: dict[str, Callable[[Path], dict[str, StoredArray]]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
}
