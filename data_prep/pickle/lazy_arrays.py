"""Lazy arrays and tensors of a pickle: where they are in the file, checked, not yet read.

FileSpan                                  bytes or text that are still in the file
LazyArray, LazyStorage, LazyTensor        `materialize` reads this one out of the file
DtypeStub, StorageTypeStub                stand for a dtype and for a class of torch storages
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.errors import UserError
from data_prep.pickle.limits import Budget, check_array_size, check_shape, shown

STORAGE_DTYPES = {
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


@dataclass(frozen=True)
class FileSpan:
    """`length` bytes of an open file at `offset`, or in `memory`.

    `kind`: bytes; text (UTF-8); string (of Python 2: bytes or latin1 text); latin1 (bytes that were
    written as text, in UTF-8).
    """

    descriptor: int
    offset: int
    length: int
    kind: str = "bytes"
    memory: bytes | None = None

    def read(self, start: int = 0, count: int = -1) -> Any:
        """`count` bytes (-1 = all) from `start` on, as they are in the file: a writable buffer.

        Raises EOFError if the file has become shorter.
        """
        count = self.length - start if count < 0 else count
        if self.memory is not None:
            return memoryview(self.memory)[start : start + count]
        buffer = np.empty(count, np.uint8)
        done = 0
        while done < count:  # a read gives at most 2 GiB
            got = os.preadv(self.descriptor, [buffer[done:].data], self.offset + start + done)
            if not got:
                raise EOFError("the file ends early")
            done += got
        return buffer.data

    def materialize(self) -> bytes | str:
        content = bytes(self.read())
        if self.kind == "bytes":
            return content
        text = content.decode("latin1" if self.kind == "string" else "utf-8")
        return text.encode("latin1") if self.kind == "latin1" else text


class DtypeStub:
    """Stands for a numpy.dtype of plain numbers or text."""

    __slots__ = ("value",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biufcSU]\d{1,4}|\?", name, re.ASCII):
            raise UserError(
                f"the pickle holds an array of dtype {shown(name)}; only numbers and text are"
                " supported"
            )
        self.value = np.dtype(name)

    def build(self, state: Any) -> None:
        _, order, subtype, names, fields = state[:5]
        if subtype is not None or names is not None or fields is not None:
            raise UserError(
                "the pickle holds an array of a structured dtype;"
                " only numbers and text are supported"
            )
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {shown(order)}")
        self.value = self.value.newbyteorder(order)


class LazyArray:
    """Stands for a numpy array."""

    __slots__ = ("content", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.content: Any = None

    def build(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        if isinstance(content, list):
            raise UserError(
                "the pickle holds an array of objects; only numbers and text are supported"
            )
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> LazyArray:
        content = (
            content.encode("latin1") if isinstance(content, str) else content
        )  # Python 2 wrote bytes as text
        if isinstance(content, (bytes, bytearray)):
            content = FileSpan(-1, 0, len(content), "bytes", bytes(content))
        if (
            not isinstance(content, FileSpan)
            or content.kind == "text"
            or not isinstance(dtype, DtypeStub)
        ):
            raise pickle.UnpicklingError("an array that is not made of bytes and a dtype")
        self.shape = check_shape(shape)
        self.content, self.dtype, self.order = content, dtype.value, "F" if order == "F" else "C"
        if content.kind != "latin1":
            self.check(content.length)
        return self

    def check(self, length: int) -> None:
        if length != math.prod(self.shape) * self.dtype.itemsize:
            raise pickle.UnpicklingError(
                f"{length} bytes for an array {self.shape} of {self.dtype}"
            )

    def materialize(self) -> np.ndarray:
        if self.content is None:
            raise pickle.UnpicklingError("an array without content")
        check_array_size(self.shape, self.dtype.itemsize)
        content = (
            self.content.materialize() if self.content.kind == "latin1" else self.content.read()
        )
        self.check(len(content))
        flat: Any = np.frombuffer(content, self.dtype) if len(content) else np.empty(0, self.dtype)
        return flat.reshape(self.shape, order=self.order)


@dataclass(frozen=True)
class StorageTypeStub:
    """Stands for torch.FloatStorage and the like: the name of an element type; never called."""

    dtype: str


class LazyStorage:
    """The flat memory of torch tensors; in the old file layout `content` is set last."""

    __slots__ = ("content", "dtype")

    def __init__(self, dtype: str, content: FileSpan | None = None) -> None:
        self.dtype, self.content = dtype, content

    @property
    def element(self) -> np.dtype:
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements start .. stop - 1; bfloat16 as float32."""
        if self.content is None:
            raise pickle.UnpicklingError("a tensor without content")
        size = self.element.itemsize
        if stop * size > self.content.length:
            raise pickle.UnpicklingError(
                f"a tensor that reaches element {stop - 1} of {self.content.length // size}"
            )
        check_array_size((stop - start,), size)
        flat = np.frombuffer(self.content.read(start * size, (stop - start) * size), self.element)
        return to_float32(flat) if self.dtype == "bfloat16" else flat

    def materialize(self) -> np.ndarray:
        return self.read(0, self.content.length // self.element.itemsize if self.content else 0)


class NestedStorage(LazyStorage):
    """A storage inside bytes that were written as text.

    Its content has no position in the file, so it is parsed at each read.
    """

    __slots__ = ("parse", "text")

    def __init__(self, text: FileSpan, parse: Callable[..., LazyStorage]) -> None:
        self.text, self.parse = text, parse

    def storage(self) -> LazyStorage:
        check_array_size((self.text.length,), 1)
        return self.parse(self.text.materialize(), budget=Budget())

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.storage().read(start, stop)

    def materialize(self) -> np.ndarray:
        return self.storage().materialize()


class LazyTensor:
    """Stands for a torch tensor: a storage, an offset, sizes and strides, all in elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> None:
        shape, strides = check_shape(shape), check_shape(strides)
        if (
            not isinstance(storage, LazyStorage)
            or len(shape) != len(strides)
            or check_shape(offset) != (offset,)
        ):
            raise pickle.UnpicklingError(
                "a tensor that is not made of a storage, an offset, sizes and strides"
            )
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def materialize(self) -> np.ndarray:
        check_array_size(self.shape, 1)
        if 0 in self.shape:
            return np.empty(self.shape, self.storage.read(0, 0).dtype)
        stop = (
            self.offset
            + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
            + 1
        )
        flat = self.storage.read(
            self.offset, stop
        )  # which refuses a reach past the end: as_strided itself would read there
        check_array_size(self.shape, flat.itemsize)
        steps = [step * flat.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps)
