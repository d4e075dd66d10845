"""Reads pickles of arrays without running any of their code, and each array only when it is needed.

    FILE ──Interpreter──> containers, text, numbers, lazy arrays ──read_array──> one array
              └── find: one of the few allowed names, or a UserError that names the global

A pickle is a program: it may call whatever it can name. Here a name is never looked up. Each of the
few allowed names stands for a function that checks its arguments (allowed_globals.py,
lazy_arrays.py), and no function of numpy or torch runs meanwhile. Arrays, numpy scalars and torch
tensors, in a plain pickle or in a torch.save file of either layout, come out as numpy arrays;
bfloat16 as float32, which holds it exactly.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.archive import check_member, open_zip
from cjepa_dist.data.format.dtypes import to_native
from cjepa_dist.errors import UserError
from data_prep.pickle.allowed_globals import (
    AllowedGlobal,
    checked_container,
    encode_latin1,
    make_defaultdict,
    make_scalar,
    new_array,
    refuse_call,
)
from data_prep.pickle.interpreter import Interpreter, PickleSource
from data_prep.pickle.lazy_arrays import (
    STORAGE_DTYPES,
    DtypeStub,
    FileSpan,
    LazyArray,
    LazyStorage,
    LazyTensor,
    NestedStorage,
    StorageTypeStub,
)
from data_prep.pickle.limits import Budget, check_key, shown

ZIP_MAGIC = b"PK\x03\x04"
COMPRESSED = {  # by the first bytes
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first number of a torch.save file of the layout before 1.6


@contextlib.contextmanager
def open_pickle(path: str | Path) -> Iterator[Any]:
    """The content of a pickle or torch.save file; inside the block `read_array` reads its arrays.

    Raises UserError if it is missing or damaged, or needs anything but arrays and containers.
    """
    with as_user_error(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        with as_user_error(path):
            start = os.pread(descriptor, 8, 0)
            if kind := next((COMPRESSED[b] for b in COMPRESSED if start.startswith(b)), ""):
                raise UserError(f"{path} is compressed by {kind}; unpack it first")
            if start.startswith(ZIP_MAGIC):
                content = read_archive(descriptor, str(path))
            else:
                source = PickleSource(descriptor, 0, os.fstat(descriptor).st_size)
                content = read_pickle(source, str(path), Budget())
        yield content
    finally:
        os.close(descriptor)


def read_array(path: str | Path, lazy: LazyArray | LazyTensor) -> np.ndarray:
    """Read a lazy array of `open_pickle(path)`, in native types. Raises UserError as that does."""
    with as_user_error(path):
        return to_native(lazy.materialize())


def load(path: str | Path) -> Any:
    """The content of a pickle or torch.save file with all arrays in memory."""
    with open_pickle(path) as content, as_user_error(path):
        return materialize(content, {})


@contextlib.contextmanager
def as_user_error(path: str | Path) -> Iterator[None]:
    """Turn any failure of a damaged pickle into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory, or is damaged") from error
    except Exception as error:
        raise UserError(
            f"{path} is not a readable pickle of arrays: {type(error).__name__}: {error}"
        ) from error


@cache
def allowed_table() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): AllowedGlobal("numpy.ndarray", refuse_call),
        ("numpy", "memmap"): AllowedGlobal("numpy.memmap", refuse_call),
        ("numpy", "dtype"): AllowedGlobal("numpy.dtype", DtypeStub),
        ("_codecs", "encode"): AllowedGlobal("_codecs.encode", encode_latin1),
        ("collections", "OrderedDict"): AllowedGlobal(
            "collections.OrderedDict", checked_container(OrderedDict)
        ),
        ("collections", "defaultdict"): AllowedGlobal("collections.defaultdict", make_defaultdict),
        ("torch._utils", "_rebuild_tensor_v2"): AllowedGlobal(
            "torch._utils._rebuild_tensor_v2", LazyTensor
        ),
        ("torch._utils", "_rebuild_parameter"): AllowedGlobal(
            "torch._utils._rebuild_parameter", lambda data, *_: data
        ),
        ("torch.storage", "_load_from_bytes"): AllowedGlobal(
            "torch.storage._load_from_bytes", storage_from_bytes, reads_pickles=True
        ),
    }
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        table[f"{package}.multiarray", "_reconstruct"] = AllowedGlobal(
            "numpy._reconstruct", new_array
        )
        table[f"{package}.multiarray", "scalar"] = AllowedGlobal("numpy.scalar", make_scalar)
        table[f"{package}.numeric", "_frombuffer"] = AllowedGlobal(
            "numpy._frombuffer", lambda b, d, s, o: LazyArray().fill(b, d, s, o)
        )
    for module in ("builtins", "__builtin__"):  # Python 3 and Python 2
        for kind in (set, frozenset, bytes, bytearray):
            table[module, kind.__name__] = AllowedGlobal(kind.__name__, checked_container(kind))
        for name in ("dict", "list"):  # what a defaultdict makes
            table[module, name] = AllowedGlobal(name, refuse_call)
    for name, dtype in STORAGE_DTYPES.items():
        table["torch", name] = StorageTypeStub(dtype)
    return table


def run_pickle(
    source: PickleSource,
    origin: str,
    budget: Budget,
    storage: Callable[[StorageTypeStub, str], LazyStorage] | None = None,
) -> Any:
    """Interpret one pickle. `storage` gives the memory for the key of a tensor."""

    def find(module: str, name: str) -> Any:
        if (module, name) not in allowed_table():
            supported = (
                "only arrays, tensors, containers, text and numbers are read; nothing was run"
            )
            if module.startswith("joblib."):
                supported += "; write it again by pickle.dump(joblib.load(FILE), ...)"
            raise UserError(f"{origin} needs {module}.{name}: {supported}")
        return allowed_table()[module, name]

    def persistent(identifier: Any) -> LazyStorage:
        if (
            storage is None
            or not isinstance(identifier, tuple)
            or len(identifier) < 5
            or not isinstance(identifier[1], StorageTypeStub)
            or not isinstance(identifier[2], (str, int))
        ):
            raise UserError(
                f"{origin} refers to something outside of it ({shown(identifier)});"
                " only torch.save files may do that, for tensors"
            )
        if len(identifier) > 5 and identifier[5] is not None:
            raise UserError(
                f"{origin} holds a view of a storage as torch before 0.4 wrote it;"
                " save it again with a newer torch"
            )
        return storage(identifier[1], str(identifier[2]))

    return Interpreter(source, find, persistent, budget).load()


def read_pickle(source: PickleSource, origin: str, budget: Budget) -> Any:
    content = run_pickle(source, origin, budget)
    return (
        read_legacy(source, origin, budget)
        if isinstance(content, int) and content == TORCH_MAGIC
        else content
    )


def read_legacy(source: PickleSource, origin: str, budget: Budget) -> Any:
    """torch.save before 1.6, and torch storages in plain pickles.

    Layout: version, system, content, keys, then for each storage its length and its memory.
    """
    storages: dict[str, LazyStorage] = {}
    run_pickle(source, origin, budget)
    system = run_pickle(source, origin, budget)
    if not system["little_endian"]:
        raise UserError(f"{origin} was written on a big-endian machine; save it again on another")
    content = run_pickle(
        source, origin, budget, lambda kind, key: storages.setdefault(key, LazyStorage(kind.dtype))
    )
    for key in map(check_key, run_pickle(source, origin, budget)):
        count = int.from_bytes(source.file.read(8), "little")
        storages[key].content = source.read_span(count * storages[key].element.itemsize, "bytes")
    return content


def storage_from_bytes(content: Any, *, budget: Budget) -> LazyStorage:
    """torch.storage._load_from_bytes: a torch.save file of the old layout inside the pickle."""
    if isinstance(content, FileSpan) and content.kind == "latin1":
        return NestedStorage(content, storage_from_bytes)
    if isinstance(content, FileSpan):
        source = PickleSource(content.descriptor, content.offset, content.length)
    else:
        source = PickleSource(None, memory=content)
    storage = read_pickle(source, "the pickle", budget)
    if not isinstance(storage, LazyStorage):
        raise pickle.UnpicklingError(
            "torch.storage._load_from_bytes of something that is no storage"
        )
    return storage


def read_archive(descriptor: int, origin: str) -> Any:
    """torch.save since 1.6: a zip of NAME/data.pkl, NAME/data/<key> per storage, NAME/byteorder."""
    with os.fdopen(os.dup(descriptor), "rb") as file, open_zip(file) as archive:
        names = archive.namelist()
        root = next(
            (name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None
        )
        if root is None:
            raise UserError(f"{origin} is a zip, but not one of torch.save")
        if (
            f"{root}byteorder" in names
            and bytes(zip_member(archive.getinfo(f"{root}byteorder"), descriptor).read())
            != b"little"
        ):
            raise UserError(
                f"{origin} was written on a big-endian machine; save it again on another"
            )
        storages: dict[str, LazyStorage] = {}

        def storage(kind: StorageTypeStub, key: str) -> LazyStorage:
            if key not in storages:
                storages[key] = LazyStorage(
                    kind.dtype, zip_member(archive.getinfo(f"{root}data/{key}"), descriptor)
                )
            return storages[key]

        place = zip_member(archive.getinfo(f"{root}data.pkl"), descriptor)
        source = PickleSource(descriptor, place.offset, place.length)
        return run_pickle(source, origin, Budget(), storage)


def zip_member(info: zipfile.ZipInfo, descriptor: int) -> FileSpan:
    """Where the bytes of a zip member are. UserError if compressed; torch never compresses."""
    check_member(info)
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{info.filename} within the zip is compressed; save it again with torch.save"
        )
    header = os.pread(descriptor, 30, info.header_offset)
    if header[:4] != ZIP_MAGIC:
        raise zipfile.BadZipFile(f"no member at byte {info.header_offset}")
    start = (
        info.header_offset
        + 30
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )
    if start + info.file_size > os.fstat(descriptor).st_size:
        raise EOFError(f"it ends within {info.filename}")
    return FileSpan(descriptor, start, info.file_size)


def materialize(content: Any, seen: dict[int, Any]) -> Any:
    """The content with arrays in place of lazy arrays; dicts and lists are changed in place."""
    if isinstance(content, (LazyArray, LazyTensor, LazyStorage, FileSpan)):
        if id(content) not in seen:
            # The lazy array is kept too, so that no other object gets its id.
            seen[id(content)] = (content.materialize(), content)
        return seen[id(content)][0]
    if isinstance(content, (dict, list)):
        if id(content) in seen:
            return content
        seen[id(content)] = (content, content)
    if isinstance(content, dict):
        for key in content:
            content[key] = materialize(content[key], seen)
    elif isinstance(content, list):
        content[:] = [materialize(item, seen) for item in content]
    elif isinstance(content, tuple):
        return tuple(materialize(item, seen) for item in content)
    elif isinstance(content, (AllowedGlobal, DtypeStub, StorageTypeStub)):
        raise UserError(
            "the pickle holds a class or a function;"
            " only arrays, tensors, containers, text and numbers are read"
        )
    return content
