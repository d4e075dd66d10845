"""Stand-ins for numpy's and torch's classes and functions while a pickle is read (`safe_pickle.py`): plain Python with checks.

    Allowed(name, make)                       a name the pickle may call
    Dtype, Array, StorageType, Storage, Tensor   what the calls give; `settle` makes numpy arrays of them when the pickle has ended

A pickle may also set the state of whatever it holds; each of these refuses that, or checks it.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from cjepa_dist.errors import UserError

STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Allowed:
    """What a pickle gets for an allowed name: it can be called and nothing else. Immutable, so that no pickle can change what it does."""

    __slots__ = ("make", "name")
    make: Callable[..., Any]
    name: str

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "make", make)

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle changes {self.name}")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle changes {self.name}")


class Dtype:
    """Stands for numpy.dtype: plain numbers and text only."""

    __slots__ = ("value",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biufcSU]\d+|\?", name):
            raise UserError(f"the pickle holds an array of dtype {name!r}; only numbers and text are read")
        self.value = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields = state[:5]
        if subtype is not None or names is not None or fields is not None:
            raise UserError("the pickle holds an array of a structured dtype; only numbers and text are read")
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self.value = self.value.newbyteorder(order)


class Array:
    """Stands for a numpy array while the pickle is read; keeps its bytes, and becomes an array (of the same memory) in `settle`."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        if isinstance(content, list):
            raise UserError("the pickle holds an array of objects; only numbers and text are read")
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> Array:
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote bytes as text
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, Dtype):
            raise pickle.UnpicklingError("an array that is not made of bytes and a dtype")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(content) != math.prod(shape) * dtype.value.itemsize:
            raise pickle.UnpicklingError(f"{len(content)} bytes for an array {shape} of {dtype.value}")
        flat = np.frombuffer(content, dtype.value) if len(content) else np.empty(0, dtype.value)
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")
        return self

    def settle(self) -> np.ndarray:
        if self.array is None:
            raise pickle.UnpicklingError("an array without content")
        return self.array


class StorageType:
    """Stands for torch.FloatStorage and its kin: a name for an element type, not to be called."""

    __slots__ = ("dtype",)
    dtype: str

    def __init__(self, dtype: str) -> None:
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the pickle changes a storage type")


class Storage:
    """The flat memory of torch tensors; in the old layout it is filled after the tensors have been named."""

    __slots__ = ("array", "content", "dtype")

    def __init__(self, dtype: str, content: bytes | None = None) -> None:
        self.dtype, self.content = dtype, content
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle changes a storage")

    def settle(self) -> np.ndarray:
        if self.content is None:
            raise pickle.UnpicklingError("a tensor without content")
        if self.array is None and self.dtype == "bfloat16":  # the upper half of a float32
            self.array = (np.frombuffer(self.content, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif self.array is None:
            self.array = np.frombuffer(self.content, np.dtype(self.dtype).newbyteorder("<"))
        return self.array


class Tensor:
    """Stands for a torch tensor: a storage, an offset, sizes and strides, all in elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> None:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor that is not made of a storage, an offset, sizes and strides")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle changes a tensor")

    def settle(self) -> np.ndarray:
        flat = self.storage.settle()
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        if last >= len(flat):  # as_strided itself would read past the end
            raise pickle.UnpicklingError(f"a tensor that reaches element {last} of {len(flat)}")
        steps = [step * flat.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)


def reconstruct(kind: Any, *_: Any) -> Array:
    if not isinstance(kind, Allowed) or kind.name != "numpy.ndarray":
        raise UserError(f"the pickle makes an array of class {getattr(kind, 'name', kind)!r}; only numpy.ndarray is read")
    return Array()


def scalar(dtype: Any, content: Any) -> Any:
    return Array().fill(content, dtype, (1,), "C").settle()[0]


def encode(text: Any, encoding: Any = "utf-8") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise UserError(f"the pickle calls _codecs.encode with encoding {encoding!r}; only latin1 is read")
    return text.encode("latin1")


def plain(kind: type) -> Callable[..., Any]:
    """A container made from at most one container: `bytearray(10 ** 12)` and the like would take memory for nothing."""

    def make(*arguments: Any) -> Any:
        if len(arguments) > 1 or any(not isinstance(a, (list, tuple, bytes, bytearray)) for a in arguments):
            raise pickle.UnpicklingError(f"{kind.__name__} of {arguments!r:.80}")
        return kind(*arguments)

    return make


def refused(*_: Any) -> Any:
    raise pickle.UnpicklingError("a class that is only to be named is called")
