"""How much a pickle may ask for: steps, bytes in memory, depth, and the size of one array.

A pickle of a few bytes can build tuples that take years to hash, or copy what it has a million
times. So keys are plain values, everything that costs is counted, and the result is walked once.
The limits are in docs/reference/shard_format.md.
"""

from __future__ import annotations

import math
import pickle
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from cjepa_dist.errors import UserError

MOST_STEPS = 5_000_000  # opcodes, and items of containers that are copied
MOST_BYTES = 256 << 20  # of text and small arrays, which are kept in memory
MOST_DEPTH = 50  # of containers in containers
MOST_ARRAY_BYTES = 256 << 20  # of one array when it is read
MOST_DIMENSIONS = 16
MOST_LINE = 1 << 16  # bytes of a number or a name that is written as text
MOST_KEY_ITEMS = 8  # of a tuple that is a key

PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)


class Budget:
    """What one file may still ask for; shared by the pickles within a pickle."""

    def __init__(self) -> None:
        self.steps, self.bytes = MOST_STEPS, MOST_BYTES

    def spend_steps(self, count: int) -> None:
        self.steps -= count
        if self.steps < 0:
            raise UserError(f"the pickle takes more than {MOST_STEPS} steps; split it in parts")

    def spend_bytes(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise UserError(
                f"the pickle holds more than {MOST_BYTES >> 20} MiB of text and small arrays;"
                " save it in parts"
            )

    def spend_arguments(self, arguments: Iterable[Any]) -> None:
        """What a call may copy of its arguments."""
        for value in arguments:
            if isinstance(value, (str, bytes, bytearray)):
                self.spend_bytes(len(value))
            elif isinstance(value, (list, tuple, set, frozenset, dict)):
                self.spend_steps(len(value))


def check_key(value: Any) -> Any:
    """A key of a dict or an item of a set, which is hashed: a plain value, or a tuple of a few."""
    if isinstance(value, tuple) and len(value) <= MOST_KEY_ITEMS:
        items = value
    else:
        items = (value,)
    if all(isinstance(item, PLAIN) and not has_cheap_collisions(item) for item in items):
        return value
    raise pickle.UnpicklingError(f"a key of type {type(value).__name__}; text or numbers are keys")


def has_cheap_collisions(value: Any) -> bool:
    """Whether it is an int whose hash is not the int: many of them can have one hash."""
    return isinstance(value, int) and not -(1 << 60) < value < 1 << 60


def check_shape(shape: Any) -> tuple[int, ...]:
    """Sizes, strides and the like: few whole numbers that are not negative."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    right = len(sizes) <= MOST_DIMENSIONS
    if not right or not all(type(size) is int and 0 <= size < 1 << 60 for size in sizes):
        raise pickle.UnpicklingError(f"an array of shape {shown(sizes)}")
    return sizes


def check_array_size(shape: tuple[int, ...], itemsize: int) -> None:
    """Raises UserError for an array that is too large for one video."""
    if (size := math.prod(shape) * itemsize) > MOST_ARRAY_BYTES:
        raise UserError(
            f"an array {shape} takes {size / 2**20:.0f} MiB; one video has at most"
            f" {MOST_ARRAY_BYTES >> 20} MiB"
        )


def check_structure(content: Any) -> None:
    """Raises UserError for containers that are too deep, hold themselves, or share too much.

    Counts what a walk that does not know of sharing would visit.
    """
    sizes: dict[int, int] = {}

    def visit(value: Any, depth: int) -> int:
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            return 1
        if id(value) in sizes:
            if sizes[id(value)] == 0:
                raise UserError("the pickle holds a container that holds itself")
            return sizes[id(value)]
        if depth > MOST_DEPTH:
            raise UserError(f"the pickle holds containers more than {MOST_DEPTH} deep")
        sizes[id(value)] = 0  # being visited
        items = value.values() if isinstance(value, dict) else value
        total = 1 + sum(visit(item, depth + 1) for item in items)
        if total > MOST_STEPS:
            raise UserError(f"the pickle holds more than {MOST_STEPS} values")
        sizes[id(value)] = total
        return total

    visit(content, 1)


def shown(value: Any) -> str:
    """A value for a message, shortened: repr of what is nested may take for ever."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxtuple, brief.maxlist, brief.maxdict = 2, 3, 3, 3
    brief.maxstring = brief.maxother = 60
    try:
        return brief.repr(value)
    except ValueError:  # an int of thousands of digits
        return f"a {type(value).__name__}"
