"""CLEVRER's question programs: what their tokens mean, and the executor that answers them from a simulation.

    tokens (postfix) ──> check(tokens) ──────────> the kinds left on the stack   (no world needed: any real program)
                     └─> World(history).run(...) ──> the answer                  (yes, no, a number or an attribute)

A choice's program, then its question's, run on ONE stack: the choice leaves an object or an event, `belong_to` compares it.
Semantics: the CLEVRER paper (Yi et al. 2020, appendix) and its public executor, as written down in spec/clevrer.md. Settled here:
an object exists for questions if it is in view at some shown frame; a collision is an event if both objects are in view at its frame;
a counterfactual answer speaks of the shown frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from cjepa_dist.clevrer.scene import COLORS, MATERIALS, SHAPES, SHOWN, History
from cjepa_dist.errors import UserError

MOVING_SPEED = (
    0.003  # world units a video frame; above it an object "is moving". A new object has .01 to .04.
)

ATTRIBUTES = {"color": COLORS, "material": MATERIALS, "shape": SHAPES}
ORDERS = {"first": 0, "second": 1, "last": -1}


class Event(NamedTuple):
    """Something that happens: start, end, in, out or collision. `frame` is -1 for a pair that need not happen (`all_events`)."""

    kind: str
    frame: int
    objects: tuple[int, ...]


class World:
    """One video as the programs see it. `counterfactual(object_id)` re-simulates without that object; it is asked at most once each.

    Shapes: history.present (180, n) bool, history.velocity (180, n, 2); column i belongs to the object with id i.
    """

    def __init__(
        self, history: History, counterfactual: Callable[[int], History] | None = None
    ) -> None:
        self.history = history
        self._resimulate = counterfactual
        self._worlds: dict[int, History] = {}
        self._pairs: dict[int, dict[tuple[int, ...], int]] = {}
        seen = np.any(history.present[:SHOWN], axis=0)
        self.described = [o for o in history.objects if seen[o.object_id]]
        self.objects = [o.object_id for o in self.described]
        self.attribute = {
            name: {o.object_id: str(getattr(o, name)) for o in self.described}
            for name in ATTRIBUTES
        }
        known = set(self.objects)
        every = [Event("in", f, (o,)) for o, f in history.entries.items() if o in known]
        every += [Event("out", f, (o,)) for o, f in history.exits.items() if o in known]
        every += [
            Event("collision", f, pair)
            for pair, f in visible_collisions(history)
            if pair[0] in known and pair[1] in known
        ]
        every.sort(key=lambda e: (e.frame, e.kind, e.objects))
        happened = [e for e in every if e.frame < SHOWN]
        self.start, self.end = Event("start", 0, ()), Event("end", SHOWN - 1, ())
        self.happened = happened  # without start and end
        self.events = [self.start, *happened, self.end]
        self.unseen = [e for e in every if e.frame >= SHOWN]

    @cached_property
    def moving(self) -> dict[int, list[bool]]:
        """Object id -> for each shown frame: in view and faster than MOVING_SPEED."""
        fast = (
            np.square(self.history.velocity[:SHOWN]).sum(-1) > MOVING_SPEED**2
        ) & self.history.present[:SHOWN]
        return {o: fast[:, o].tolist() for o in self.objects}

    @cached_property
    def resting(self) -> dict[int, list[bool]]:
        """Object id -> for each shown frame: in view and not moving."""
        seen = self.history.present[:SHOWN]
        return {
            o: [p and not m for p, m in zip(seen[:, o].tolist(), self.moving[o])]
            for o in self.objects
        }

    @cached_property
    def pairs(self) -> list[Event]:
        """All unordered pairs of objects as possible collisions."""
        return [
            Event("collision", -1, (a, b) if a < b else (b, a))
            for i, a in enumerate(self.objects)
            for b in self.objects[i + 1 :]
        ]

    @cached_property
    def traces(self) -> dict[int, list[Event]]:
        """Object id -> its events in the order of time."""
        traces: dict[int, list[Event]] = {o: [] for o in self.objects}
        for event in self.happened:
            for o in event.objects:
                traces[o].append(event)
        return traces

    def ancestors(self, event: Event) -> set[Event]:
        """The events before `event` in the traces of its objects, and theirs, recursively."""
        found: set[Event] = set()
        front = [event]
        while front:
            effect = front.pop()
            for o in effect.objects:
                trace = self.traces[o]
                if (
                    effect in trace
                    and (index := trace.index(effect)) > 0
                    and trace[index - 1] not in found
                ):
                    found.add(trace[index - 1])
                    front.append(trace[index - 1])
        return found

    def resimulated(self, removed: int) -> History:
        """What happens without the object `removed`."""
        if removed not in self._worlds:
            if self._resimulate is None:
                raise UserError(
                    f"a program asks what happens without object {removed}, but no counterfactual simulation was given"
                )
            self._worlds[removed] = self._resimulate(removed)
        return self._worlds[removed]

    def without(self, removed: int) -> dict[tuple[int, ...], int]:
        """Pairs that collide, in view and within the shown frames, in the world without `removed` -> frame of their first collision."""
        if removed not in self._pairs:
            pairs: dict[tuple[int, ...], int] = {}
            for pair, frame in visible_collisions(self.resimulated(removed)):
                if frame < SHOWN:
                    pairs.setdefault(pair, frame)
            self._pairs[removed] = pairs
        return self._pairs[removed]

    def run(self, *programs: Iterable[str]) -> str:
        """Run programs one after the other on one stack. The answer as in CLEVRER's files.

        Raises UserError for an unknown operator, operands that do not fit, or a `unique` / `filter_order` that finds nothing.
        """
        kinds, values = evaluate([token for program in programs for token in program], self)
        if len(kinds) != 1 or kinds[0] not in ("answer", "number"):
            raise UserError(
                f"a program must leave one answer; it leaves {', '.join(kinds) or 'nothing'}"
            )
        return str(values[0])


def visible_collisions(history: History) -> list[tuple[tuple[int, ...], int]]:
    """((a, b), frame) of the collisions whose objects are both in view at the frame of contact, by frame."""
    present = history.present
    return [
        ((c.a, c.b), c.frame)
        for c in history.collisions
        if present[c.frame, c.a] and present[c.frame, c.b]
    ]


# --- operators -------------------------------------------------------------------------------------------------------


def _unique(world: World, items: list) -> Any:
    if len(items) != 1:
        raise UserError(f"unique finds {len(items)} things where one is described")
    return items[0]


def _order(world: World, events: list[Event], order: str) -> Event:
    index = ORDERS[order]
    if not -len(events) <= index < len(events):
        raise UserError(f"filter_order asks for the {order} of {len(events)} events")
    return events[index]


def _partner(world: World, event: Event, item: int) -> int:
    if event.kind != "collision" or item not in event.objects:
        raise UserError("get_col_partner needs a collision of the given object")
    return event.objects[1] if event.objects[0] == item else event.objects[0]


def _object(world: World, event: Event) -> int:
    if event.kind not in ("in", "out"):
        raise UserError(f"get_object needs an entrance or an exit, not a {event.kind}")
    return event.objects[0]


def _belong(world: World, entry: int | Event, events: list[Event]) -> str:
    if isinstance(entry, Event):
        return _yes(any(e.kind == entry.kind and e.objects == entry.objects for e in events))
    return _yes(any(entry in e.objects for e in events))


def _ancestor(world: World, events: list[Event], event: Event) -> list[Event]:
    causes = world.ancestors(event)
    return [e for e in events if e in causes]


def _counterfact(world: World, events: list[Event], removed: int) -> list[Event]:
    pairs = world.without(removed)
    return [e for e in events if e.objects in pairs]


def _with(kind: str) -> Callable[..., list[Event]]:
    def keep(world: World, events: list[Event], who: int | list[int]) -> list[Event]:
        if isinstance(who, list):
            members = set(who)
            return [e for e in events if e.kind == kind and not members.isdisjoint(e.objects)]
        return [e for e in events if e.kind == kind and who in e.objects]

    return keep


def _having(name: str) -> Callable[..., list[int]]:
    return lambda world, items, value: [o for o in items if world.attribute[name][o] == value]


def _in_state(moving: bool) -> Callable[..., list[int]]:
    def keep(world: World, items: list[int], frame: int | None) -> list[int]:
        if frame is not None:
            state = world.moving if moving else world.resting
            return [o for o in items if state[o][frame]]
        return [o for o in items if any(world.moving[o]) == moving]

    return keep


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class Operator(NamedTuple):
    """Accepted kinds of operands -> kind of the result, and the function (world, *operands) -> value."""

    signatures: dict[tuple[str, ...], str]
    function: Callable[..., Any]


OPERATORS: dict[str, Operator] = {
    "objects": Operator({(): "objects"}, lambda w: w.objects),
    "events": Operator({(): "events"}, lambda w: w.events),
    "unseen_events": Operator({(): "events"}, lambda w: w.unseen),
    "all_events": Operator({(): "events"}, lambda w: w.pairs),
    "start": Operator({(): "event"}, lambda w: w.start),
    "end": Operator({(): "event"}, lambda w: w.end),
    "unique": Operator({("objects",): "object", ("events",): "event"}, _unique),
    "count": Operator({("objects",): "number", ("events",): "number"}, lambda w, items: len(items)),
    "exist": Operator(
        {("objects",): "answer", ("events",): "answer"}, lambda w, items: _yes(bool(items))
    ),
    "negate": Operator({("answer",): "answer"}, lambda w, value: _yes(value == "no")),
    "belong_to": Operator({("object", "events"): "answer", ("event", "events"): "answer"}, _belong),
    "filter_order": Operator({("events", "order"): "event"}, _order),
    "filter_before": Operator(
        {("events", "event"): "events"}, lambda w, items, e: [x for x in items if x.frame < e.frame]
    ),
    "filter_after": Operator(
        {("events", "event"): "events"}, lambda w, items, e: [x for x in items if x.frame > e.frame]
    ),
    "filter_ancestor": Operator({("events", "event"): "events"}, _ancestor),
    "filter_moving": Operator({("objects", "frame"): "objects"}, _in_state(True)),
    "filter_stationary": Operator({("objects", "frame"): "objects"}, _in_state(False)),
    "get_frame": Operator({("event",): "frame"}, lambda w, e: e.frame),
    "get_object": Operator({("event",): "object"}, _object),
    "get_col_partner": Operator({("event", "object"): "object"}, _partner),
    "get_counterfact": Operator({("events", "object"): "events"}, _counterfact),
}
for _name, _kind in (("filter_in", "in"), ("filter_out", "out"), ("filter_collision", "collision")):
    OPERATORS[_name] = Operator(
        {("events", "object"): "events", ("events", "objects"): "events"}, _with(_kind)
    )
for _name in ATTRIBUTES:
    OPERATORS[f"filter_{_name}"] = Operator({("objects", _name): "objects"}, _having(_name))
    OPERATORS[f"query_{_name}"] = Operator(
        {("object",): "answer"}, lambda w, o, name=_name: w.attribute[name][o]
    )

ARITY = {
    name: len(next(iter(operator.signatures))) for name, operator in OPERATORS.items()
}  # the same in all signatures of an operator
WORDS: dict[str, tuple[str, Any]] = {
    value: (name, value) for name, values in ATTRIBUTES.items() for value in values
}
WORDS |= {order: ("order", order) for order in ORDERS} | {"null": ("frame", None)}


def check(program: Sequence[str]) -> tuple[str, ...]:
    """The kinds that a program leaves on the stack. Raises UserError for an unknown operator or operands that do not fit."""
    return tuple(evaluate(program, None)[0])


def evaluate(program: Sequence[str], world: World | None) -> tuple[list[str], list[Any]]:
    """One pass over the tokens: the stack of kinds and, in a world, of values."""
    kinds: list[str] = []
    values: list[Any] = []
    for position, token in enumerate(program):
        operator = OPERATORS.get(token)
        if operator is None:
            if token not in WORDS:
                raise UserError(
                    f"unknown operator {token!r} at token {position} of the program: {' '.join(program)}"
                )
            kind, value = WORDS[token]
            kinds.append(kind)
            values.append(value)
            continue
        first = len(kinds) - ARITY[token]
        result = operator.signatures.get(tuple(kinds[first:])) if first >= 0 else None
        if result is None:
            wanted = " or ".join("(" + ", ".join(s) + ")" for s in operator.signatures)
            raise UserError(
                f"{token} at token {position} needs {wanted}, the stack holds ({', '.join(kinds)}): {' '.join(program)}"
            )
        kinds[first:] = [result]
        if world is not None:
            values[first:] = [operator.function(world, *values[first:])]
    return kinds, values
