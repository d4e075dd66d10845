"""The few functions that a pickle may call, each with its arguments checked."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cjepa_dist.errors import UserError
from data_prep.pickle.lazy_arrays import FileSpan, LazyArray
from data_prep.pickle.limits import check_key, shown


@dataclass(frozen=True)
class AllowedGlobal:
    """What a pickle gets for an allowed name. The interpreter only calls `make`."""

    name: str
    make: Callable[..., Any]
    reads_pickles: bool = False  # `make` takes the budget, for a pickle within this one


ARRAY_CLASSES = ("numpy.ndarray", "numpy.memmap")


def new_array(kind: Any, *_: Any) -> LazyArray:
    if not isinstance(kind, AllowedGlobal) or kind.name not in ARRAY_CLASSES:
        raise UserError(
            f"the pickle makes an array of class {shown(getattr(kind, 'name', kind))};"
            f" only {' and '.join(ARRAY_CLASSES)} are supported"
        )
    return LazyArray()


def make_scalar(dtype: Any, content: Any) -> Any:
    return LazyArray().fill(content, dtype, (1,), "C").materialize()[0]


def encode_latin1(text: Any, encoding: Any = "utf-8") -> bytes | FileSpan:
    long = isinstance(text, FileSpan) and text.kind == "text"
    if not (long or isinstance(text, str)) or encoding != "latin1":
        raise UserError(
            f"the pickle calls _codecs.encode with encoding {shown(encoding)};"
            " only latin1 is supported"
        )
    return (
        FileSpan(text.descriptor, text.offset, text.length, "latin1")
        if long
        else text.encode("latin1")
    )


def checked_container(kind: type) -> Callable[..., Any]:
    """A container made from at most one container.

    So `bytearray(10 ** 12)` and the like cannot fill the memory.
    """

    def make(*arguments: Any) -> Any:
        if (
            len(arguments) == 1
            and isinstance(arguments[0], FileSpan)
            and kind in (bytes, bytearray)
        ):
            return arguments[0]
        if len(arguments) > 1 or any(
            not isinstance(a, (list, tuple, bytes, bytearray)) for a in arguments
        ):
            raise pickle.UnpicklingError(f"{kind.__name__} of {shown(arguments)}")
        if kind in (set, frozenset):
            arguments = tuple([check_key(item) for item in items] for items in arguments)
        if kind is OrderedDict:
            arguments = tuple([(check_key(k), v) for k, v in items] for items in arguments)
        return kind(*arguments)

    return make


def make_defaultdict(factory: Any = None) -> dict[Any, Any]:
    """A plain dict: what is missing in it stays missing."""
    if factory is not None and not isinstance(factory, AllowedGlobal):
        raise pickle.UnpicklingError(f"a defaultdict of {shown(factory)}")
    return {}


def refuse_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("it calls a class that it may only name")
