"""Writes a pickle of dicts of arrays that need not fit into memory, as `pickle.dump` would.

{"train": Stream of (key, array), ...} ──dump_stream──> FILE.pkl, one array in memory at a time
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

PROTOCOL = 4  # the default of Python 3.8 to 3.13
BATCH = 1000  # entries between MARK and SETITEMS, as pickle's own
Pickler: Any = pickle._Pickler  # the one in Python, whose methods can be overridden


class Stream:
    """Items of a dict, made while they are written."""

    def __init__(self, items: Iterable[tuple[str, Any]]) -> None:
        self.items = items


class StreamPickler(Pickler):
    """The standard pickler, which forgets an array once it is written.

    It names numpy's function as numpy 1 does, so that the bytes do not depend on numpy's version.
    """

    dispatch = dict(Pickler.dispatch)

    def save_stream(self, stream: Stream) -> None:
        self.write(pickle.EMPTY_DICT)
        self.memoize(stream)
        count = 0
        for key, value in stream.items:
            if count % BATCH == 0:
                self.write((pickle.SETITEMS if count else b"") + pickle.MARK)
            self.save(key)
            self.save(value)
            count += 1
        if count:
            self.write(pickle.SETITEMS)

    dispatch[Stream] = save_stream

    def memoize(self, obj: Any) -> None:
        """As the standard one; what belongs to one array is not kept, and so never found again."""
        transient = isinstance(obj, (np.ndarray, tuple)) or (isinstance(obj, bytes) and obj[1:])
        if not transient:
            super().memoize(obj)
            return
        number = len(self.memo)
        self.write(self.put(number))
        self.memo["forgotten", number] = number, None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if name == "_reconstruct" and (obj.__module__ or "").endswith("core.multiarray"):
            self.save("numpy.core.multiarray")
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def dump_stream(content: Any, file: BinaryIO) -> None:
    """Write `content`, in which a Stream becomes a dict."""
    StreamPickler(file, PROTOCOL).dump(content)
