"""A pickle interpreter that runs no code: containers, text, numbers, calls of a few allowed names.

    opcodes ──Interpreter──> containers, text, numbers, lazy arrays
                  └── long bytes and text stay in the file; a FileSpan says where they are

Python's own unpickler keeps every array in memory until the end. This one keeps only positions, so
a pickle of any size needs the memory of its table of contents. `pickletools` decodes the opcodes
and their arguments. An opcode that is not below is refused.
"""

from __future__ import annotations

import codecs
import os
import pickle
import pickletools
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import Any, BinaryIO

from cjepa_dist.data.format.tar import Extent, MemberFile
from data_prep.pickle.allowed_globals import AllowedGlobal
from data_prep.pickle.lazy_arrays import DtypeStub, FileSpan, LazyArray
from data_prep.pickle.limits import MOST_LINE, Budget, check_key, check_structure

LAZY_BYTES = 4096  # content of this length or more stays in the file
MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Not LONG4, an int of up to 4 GB.
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")
TEXTS = ("UNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "SHORT_BINBYTES")
SIZED = {  # bytes of the length field, kind of the content
    "BINBYTES": (4, "bytes"),
    "BINBYTES8": (8, "bytes"),
    "BYTEARRAY8": (8, "bytes"),
    "BINUNICODE": (4, "text"),
    "BINUNICODE8": (8, "text"),
    "BINSTRING": (4, "string"),
}


class LimitedFile(BufferedReader):
    """A file whose lines have a limit: pickletools reads them whole."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(MOST_LINE + 1)
        if len(line) > MOST_LINE:
            raise pickle.UnpicklingError(f"a line of more than {MOST_LINE} bytes")
        return line


class PickleSource:
    """What a pickle is read from: a part of an open file, or memory."""

    def __init__(
        self, descriptor: int | None, offset: int = 0, length: int = 0, memory: bytes = b""
    ) -> None:
        self.descriptor, self.offset, self.length = (
            descriptor,
            offset,
            length if descriptor is not None else len(memory),
        )
        part = Extent(offset, length)
        self.file: BinaryIO = (
            BytesIO(memory)  # at most MOST_BYTES
            if descriptor is None
            else LimitedFile(MemberFile(descriptor, part), LAZY_BYTES)
        )

    def read_span(self, length: int, kind: str) -> FileSpan:
        """The next `length` bytes. EOFError if there are fewer."""
        at = self.file.tell()
        if length > self.length - at:
            raise EOFError(f"it ends {length - (self.length - at)} bytes early")
        if self.descriptor is None or length < LAZY_BYTES:
            return FileSpan(-1, 0, length, kind, self.file.read(length))
        self.file.seek(length, os.SEEK_CUR)
        return FileSpan(self.descriptor, self.offset + at, length, kind)


class Interpreter:
    """Reads one pickle from `source`.

    `find(module, name)` gives what a global stands for, `persistent(id)` what a persistent id does.
    `budget` is what it may still ask for.
    """

    def __init__(
        self,
        source: PickleSource,
        find: Callable[[str, str], Any],
        persistent: Callable[[Any], Any],
        budget: Budget,
    ) -> None:
        self.source, self.find, self.persistent = source, find, persistent
        self.budget = budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The content of the pickle. Any exception means that it is damaged or not supported."""
        read, budget = self.source.file.read, self.budget
        while (code := read(1)) != pickle.STOP:
            if not code:
                raise EOFError("it ends without its end mark")
            if (action := ACTIONS.get(code)) is None:
                raise pickle.UnpicklingError(f"opcode {code!r} is not supported")
            budget.steps -= 1  # without a call: there are some dozens of opcodes a video
            if budget.steps < 0:
                budget.spend_steps(0)
            action(self)
        content = self.stack.pop()
        check_structure(content)
        return content

    def push_sized(self, width: int, kind: str) -> None:
        content = self.source.read_span(
            int.from_bytes(self.source.file.read(width), "little"), kind
        )
        if content.memory is None:
            self.push(content)
            return
        self.budget.spend_bytes(content.length)
        self.push(content.materialize())

    def pop_to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise pickle.UnpicklingError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise pickle.UnpicklingError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def extend(self, items: list[Any]) -> None:
        expect_type(self.stack[-1], list).extend(items)

    def update(self, items: list[Any]) -> None:
        expect_type(self.stack[-1], dict).update(pairs_to_dict(items))

    def add_items(self, items: list[Any]) -> None:
        expect_type(self.stack[-1], set).update(items)

    def call(self, name: Any, arguments: Any) -> None:
        if not isinstance(name, AllowedGlobal) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something that cannot be called")
        self.budget.spend_arguments(arguments)
        if name.reads_pickles:
            self.push(name.make(*arguments, budget=self.budget))
        else:
            self.push(name.make(*arguments))

    def build(self, value: Any, state: Any) -> None:
        """Set the state of an array or a dtype; nothing else has one."""
        if not isinstance(value, (LazyArray, DtypeStub)):
            raise pickle.UnpicklingError(
                f"the pickle changes {getattr(value, 'name', type(value).__name__)}"
            )
        value.build(state)
        self.push(value)

    def top(self) -> Any:
        return self.stack[-1]

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def line(self) -> bytes:
        return self.source.file.readline().rstrip(b"\n")

    def named(self, module: Any, name: Any) -> None:
        self.push(self.find(expect_type(module, str), expect_type(name, str)))


def expect_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise pickle.UnpicklingError(f"a {type(value).__name__} where a {kind.__name__} must be")
    return value


def unquote(line: bytes) -> str:
    """Python 2's repr of a byte string, as latin1 text."""
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")  # type: ignore[attr-defined]


def pairs_to_dict(items: list[Any]) -> dict[Any, Any]:
    return {check_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def checked_keys(items: list[Any]) -> list[Any]:
    return [check_key(item) for item in items]


Handler = Callable[[Interpreter, Any], Any]
HANDLERS: dict[str, Handler] = {
    "PROTO": lambda m, protocol: expect_type(protocol, int),
    "FRAME": lambda m, length: None,  # a hint for reading ahead
    "MARK": lambda m, _: m.push(MARK),
    "POP": lambda m, _: m.pop(1),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.push(m.top()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "DICT": lambda m, _: m.push(pairs_to_dict(m.pop_to_mark())),
    "FROZENSET": lambda m, _: m.push(frozenset(checked_keys(m.pop_to_mark()))),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.update(m.pop(2)),
    "SETITEMS": lambda m, _: m.update(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.add_items(checked_keys(m.pop_to_mark())),
    "PUT": lambda m, place: m.remember(place),
    "BINPUT": lambda m, place: m.remember(place),
    "LONG_BINPUT": lambda m, place: m.remember(place),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, place: m.push(m.memo[place]),
    "BINGET": lambda m, place: m.push(m.memo[place]),
    "LONG_BINGET": lambda m, place: m.push(m.memo[place]),
    "STACK_GLOBAL": lambda m, _: m.named(*m.pop(2)),
    "REDUCE": lambda m, _: m.call(*m.pop(2)),
    "BUILD": lambda m, _: m.build(*m.pop(2)),
    "PERSID": lambda m, identifier: m.push(m.persistent(identifier)),
    "BINPERSID": lambda m, _: m.push(m.persistent(*m.pop(1))),
}


Action = Callable[[Interpreter], Any]


def push_constant(constant: Any) -> Action:
    return lambda m: m.stack.append(constant)


def push_read(reader: Callable[[Any], Any]) -> Action:
    return lambda m: m.stack.append(reader(m.source.file))


def call_handler(handler: Handler, reader: Callable[[Any], Any] | None) -> Action:
    return lambda m: handler(m, reader(m.source.file) if reader else None)


def push_sized(width: int, kind: str) -> Action:
    return lambda m: m.push_sized(width, kind)


def actions() -> dict[bytes, Action]:
    """What each opcode does, by its code."""
    found: dict[bytes, Action] = {
        pickle.GLOBAL: lambda m: m.named(m.line().decode(), m.line().decode()),
        pickle.STRING: lambda m: m.push(unquote(m.line())),
    }
    for op in pickletools.opcodes:
        code, reader = op.code.encode("latin1"), op.arg.reader if op.arg else None
        if op.name in SIZED:
            found[code] = push_sized(*SIZED[op.name])
        elif op.name in CONSTANTS:
            found[code] = push_constant(CONSTANTS[op.name])
        elif op.name in (*NUMBERS, *TEXTS) and reader:
            found[code] = push_read(reader)
        elif op.name in HANDLERS:
            found[code] = call_handler(HANDLERS[op.name], reader)
    return found


ACTIONS = actions()
