"""Reads pickles of arrays without running anything that is in them.

    bytes ──Reader (an Unpickler)──> containers, text, numbers, placeholders ──settle──> containers of numpy arrays
                 └── find_class: one of the few names below, or UserError naming the global

A pickle is a program: it may call whatever it can name. Here a name is never looked up: each of the few allowed ones stands for a
function of `placeholders.py` that checks its arguments, and nothing of numpy or torch runs while the program does. Arrays, numpy scalars
and torch tensors (in a plain pickle, in a torch.save file of either layout) come out as numpy arrays; bfloat16 as float32, which holds
it exactly.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cjepa_dist.errors import UserError
from data_prep.placeholders import (
    STORAGES,
    Allowed,
    Array,
    Dtype,
    Storage,
    StorageType,
    Tensor,
    encode,
    plain,
    reconstruct,
    refused,
    scalar,
)

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first number of a torch.save file of the layout before 1.6


def load(path: str | Path) -> Any:
    """The content of a pickle or torch.save file. UserError if it is missing, damaged, or needs anything but arrays and containers."""
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return settle(read_archive(file, str(path)))
            file.seek(0)
            return settle(read_stream(file, str(path)))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory, or is damaged") from error
    except Exception as error:  # a damaged pickle can fail in any way; nothing of it has been run
        raise UserError(f"{path} is not a readable pickle of arrays: {type(error).__name__}: {error}") from error


def allowed() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Allowed("numpy.ndarray", refused),
        ("numpy", "dtype"): Allowed("numpy.dtype", Dtype),
        ("_codecs", "encode"): Allowed("_codecs.encode", encode),
        ("collections", "OrderedDict"): Allowed("collections.OrderedDict", plain(OrderedDict)),
        ("torch._utils", "_rebuild_tensor_v2"): Allowed("torch._utils._rebuild_tensor_v2", Tensor),
        ("torch._utils", "_rebuild_parameter"): Allowed("torch._utils._rebuild_parameter", lambda data, *_: data),
        ("torch.storage", "_load_from_bytes"): Allowed("torch.storage._load_from_bytes", storage_from_bytes),
    }
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        table[f"{package}.multiarray", "_reconstruct"] = Allowed("numpy._reconstruct", reconstruct)
        table[f"{package}.multiarray", "scalar"] = Allowed("numpy.scalar", scalar)
        table[f"{package}.numeric", "_frombuffer"] = Allowed("numpy._frombuffer", lambda b, d, s, o: Array().fill(b, d, s, o))
    for module in ("builtins", "__builtin__"):  # Python 3 and Python 2
        for kind in (set, frozenset, bytes, bytearray):
            table[module, kind.__name__] = Allowed(kind.__name__, plain(kind))
    for name, dtype in STORAGES.items():
        table["torch", name] = StorageType(dtype)
    return table


class Reader(pickle.Unpickler):
    """An unpickler that knows the names in `allowed()` alone. `storage` gives the memory for a tensor's key; without it there are none."""

    def __init__(self, file: Any, origin: str, storage: Callable[[StorageType, str], Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self.origin, self.storage, self.table = origin, storage, allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.table:
            reads = "only arrays, tensors, containers, text and numbers are read; nothing was run"
            raise UserError(f"{self.origin} needs {module}.{name}: {reads}")
        return self.table[module, name]

    def persistent_load(self, identifier: Any) -> Storage:
        if self.storage is None or not isinstance(identifier, tuple) or len(identifier) < 5 or not isinstance(identifier[1], StorageType):
            raise UserError(f"{self.origin} refers to something outside of it ({identifier!r:.80}); only torch.save files may, to tensors")
        if len(identifier) > 5 and identifier[5] is not None:
            raise UserError(f"{self.origin} holds a view of a storage as torch before 0.4 wrote it; save it again with a newer torch")
        return self.storage(identifier[1], str(identifier[2]))


def read_stream(file: BinaryIO, origin: str) -> Any:
    content = Reader(file, origin).load()
    return read_legacy(file, origin) if isinstance(content, int) and content == TORCH_MAGIC else content


def read_legacy(file: BinaryIO, origin: str) -> Any:
    """torch.save before 1.6, and torch storages in plain pickles: version, system, content, keys, then each storage: count, memory."""
    storages: dict[str, Storage] = {}
    Reader(file, origin).load()
    system = Reader(file, origin).load()
    if not system["little_endian"]:
        raise UserError(f"{origin} was written on a big-endian machine; save it again on another")
    content = Reader(file, origin, lambda kind, key: storages.setdefault(key, Storage(kind.dtype))).load()
    for key in Reader(file, origin).load():
        storage = storages[key]
        size = int.from_bytes(file.read(8), "little") * (2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize)
        storage.content = file.read(size)
        if len(storage.content) != size:
            raise EOFError(f"storage {key} ends early")
    return content


def storage_from_bytes(content: Any) -> Storage:
    file = io.BytesIO(content)
    if Reader(file, "the pickle").load() != TORCH_MAGIC:
        raise pickle.UnpicklingError("torch.storage._load_from_bytes of something else")
    storage = read_legacy(file, "the pickle")
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("torch.storage._load_from_bytes of something that is no storage")
    return storage


def read_archive(file: BinaryIO, origin: str) -> Any:
    """torch.save since 1.6: a zip of NAME/data.pkl, NAME/data/<key> for each storage, and NAME/byteorder."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise UserError(f"{origin} is a zip, but not one of torch.save")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UserError(f"{origin} was written on a big-endian machine; save it again on another")
        storages: dict[str, Storage] = {}

        def storage(kind: StorageType, key: str) -> Storage:
            if key not in storages:
                storages[key] = Storage(kind.dtype, archive.read(f"{root}data/{key}"))
            return storages[key]

        with archive.open(f"{root}data.pkl") as program:
            return Reader(program, origin, storage).load()


def settle(content: Any) -> Any:
    """The content with arrays in the places of their placeholders; dicts and lists are changed in place."""
    if isinstance(content, (Array, Tensor, Storage)):
        return content.settle()
    if isinstance(content, dict):
        for key in content:
            content[key] = settle(content[key])
    elif isinstance(content, list):
        content[:] = [settle(item) for item in content]
    elif isinstance(content, tuple):
        return tuple(settle(item) for item in content)
    elif isinstance(content, (Allowed, Dtype, StorageType)):
        raise UserError("the pickle holds a class or a function; only arrays, tensors, containers, text and numbers are read")
    return content
