"""Arrays in files of the usual kinds, each read where it is asked for and not before.

    x.npy, x.npz, x.safetensors, x.h5 ──contents──> {name: Stored(shape, dtype, read)}

Every kind but HDF5 and a compressed .npz keeps its arrays as plain memory at an offset: those are mapped for the moment of the reading.
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

from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.errors import UserError

SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
}


@dataclass(frozen=True)
class Stored:
    """An array in a file. `read(None)` gives it, `read(i)` its i-th row; bfloat16 comes as float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int | None], np.ndarray]


def contents(path: Path) -> dict[str, Stored]:
    """The arrays of a file by their names within it ("" in a .npy). UserError, naming the file, for one that is damaged or unknown."""
    with errors_named(path):
        found = KINDS[path.suffix.lower()](path)
        return {
            name: Stored(a.shape, a.dtype, partial(guarded, path, a.read))
            for name, a in found.items()
        }


def guarded(path: Path, read: Callable[[int | None], np.ndarray], row: int | None) -> np.ndarray:
    with errors_named(path):
        return read(row)


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def mapped(
    path: Path,
    dtype: np.dtype,
    shape: tuple[int, ...],
    offset: int,
    order: Any = "C",
    bfloat16: bool = False,
) -> Stored:
    if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise ValueError("it ends early")

    def read(row: int | None) -> np.ndarray:
        array = np.memmap(path, dtype, "r", offset, shape, order)
        content = np.array(array if row is None else array[row])
        return widen(content) if bfloat16 else content

    return Stored(shape, "bfloat16" if bfloat16 else str(dtype), read)


def npy_layout(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy; the file then stands at its data."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array of objects; only numbers are read")
    return shape, fortran, dtype


def of_npy(path: Path) -> dict[str, Stored]:
    with open(path, "rb") as file:
        shape, fortran, dtype = npy_layout(file)
        return {"": mapped(path, dtype, shape, file.tell(), "F" if fortran else "C")}


def of_npz(path: Path) -> dict[str, Stored]:
    found = {}
    archive = zipfile.ZipFile(path)  # open as long as one of its arrays may be read
    with open(path, "rb") as file:
        for info in archive.infolist():
            with archive.open(info) as member:
                shape, fortran, dtype = npy_layout(member)
                start = member.tell()
            order = "F" if fortran else "C"
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset + 26)
                names = file.read(4)
                skip = (
                    30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
                )
                found[name] = mapped(path, dtype, shape, info.header_offset + skip + start, order)
            else:

                def read(
                    row: int | None,
                    info: Any = info,
                    start: int = start,
                    layout: Any = (shape, order, dtype),
                ) -> np.ndarray:
                    if row is not None:  # each video would unpack all of them
                        raise UserError(
                            f"{path}: {info.filename} holds all videos, compressed; save them one by one, or with np.savez"
                        )
                    shape, order, dtype = layout
                    return np.frombuffer(archive.read(info), dtype, offset=start).reshape(
                        shape, order=order
                    )

                found[name] = Stored(shape, str(dtype), read)
    return found


def of_safetensors(path: Path) -> dict[str, Stored]:
    """The format is a length (8 bytes), JSON {name: {dtype, shape, data_offsets}}, memory: so no tensor library is needed to map it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, 100 << 20):
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        dtype, shape, start = (
            np.dtype(SAFETENSORS[entry["dtype"]]),
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        )
        if entry["data_offsets"][1] - entry["data_offsets"][0] != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name} has another length than its shape says")
        found[name] = mapped(path, dtype, shape, start, bfloat16=entry["dtype"] == "BF16")
    return found


def of_hdf5(path: Path) -> dict[str, Stored]:
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: reading HDF5 needs h5py, which is not installed; pip install h5py"
        ) from None
    file = h5py.File(path, "r")  # open as long as one of its arrays may be read
    found: dict[str, Stored] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = Stored(
                node.shape, str(node.dtype), lambda row: node[()] if row is None else node[row]
            )

    file.visititems(visit)
    return found


KINDS: dict[str, Callable[[Path], dict[str, Stored]]] = {
    ".npy": of_npy,
    ".npz": of_npz,
    ".safetensors": of_safetensors,
    ".h5": of_hdf5,
    ".hdf5": of_hdf5,
}
