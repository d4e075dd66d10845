"""CLEVRER's question programs: what their tokens mean, and the executor that answers them.

    tokens (postfix) ──> check_program ────────> types left on the stack  (needs no video)
                     └─> run_programs(video) ──> the answer: yes, no, a number or an attribute

A choice's program and then its question's run on ONE stack: the choice leaves an object or an
event, and `belong_to` compares it. The meaning of each operator follows the CLEVRER paper (Yi et
al. 2020, appendix) and its public executor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from cjepa_dist.clevrer.events import Event, VideoEvents
from cjepa_dist.clevrer.scene import ATTRIBUTES
from cjepa_dist.errors import UserError

ORDERS = {"first": 0, "second": 1, "last": -1}


def _unique(video: VideoEvents, items: list) -> Any:
    if len(items) != 1:
        raise UserError(f"unique finds {len(items)} things where one is described")
    return items[0]


def _order(video: VideoEvents, events: list[Event], order: str) -> Event:
    index = ORDERS[order]
    if not -len(events) <= index < len(events):
        raise UserError(f"filter_order asks for the {order} of {len(events)} events")
    return events[index]


def _partner(video: VideoEvents, event: Event, item: int) -> int:
    if event.kind != "collision" or item not in event.objects:
        raise UserError("get_col_partner needs a collision of the given object")
    return event.objects[1] if event.objects[0] == item else event.objects[0]


def _event_object(video: VideoEvents, event: Event) -> int:
    if event.kind not in ("in", "out"):
        raise UserError(f"get_object needs an entrance or an exit, not a {event.kind}")
    return event.objects[0]


def _belong(video: VideoEvents, entry: int | Event, events: list[Event]) -> str:
    if isinstance(entry, Event):
        return _yes(any(e.kind == entry.kind and e.objects == entry.objects for e in events))
    return _yes(any(entry in e.objects for e in events))


def _ancestor(video: VideoEvents, events: list[Event], event: Event) -> list[Event]:
    causes = video.ancestors(event)
    return [e for e in events if e in causes]


def _counterfact(video: VideoEvents, events: list[Event], removed: int) -> list[Event]:
    pairs = video.counterfactual_pairs(removed)
    return [e for e in events if e.objects in pairs]


def _with(kind: str) -> Callable[..., list[Event]]:
    def keep(video: VideoEvents, events: list[Event], who: int | list[int]) -> list[Event]:
        if isinstance(who, list):
            members = set(who)
            return [e for e in events if e.kind == kind and not members.isdisjoint(e.objects)]
        return [e for e in events if e.kind == kind and who in e.objects]

    return keep


def _having(name: str) -> Callable[..., list[int]]:
    return lambda video, items, value: [o for o in items if video.attribute[name][o] == value]


def _in_state(moving: bool) -> Callable[..., list[int]]:
    def keep(video: VideoEvents, items: list[int], frame: int | None) -> list[int]:
        if frame is not None:
            state = video.moving if moving else video.resting
            return [o for o in items if state[o][frame]]
        return [o for o in items if any(video.moving[o]) == moving]

    return keep


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class Operator(NamedTuple):
    """Types of the operands -> type of the result, and the function (video, *operands) -> value."""

    signatures: dict[tuple[str, ...], str]
    function: Callable[..., Any]


OPERATORS: dict[str, Operator] = {
    "objects": Operator({(): "objects"}, lambda v: v.object_ids),
    "events": Operator({(): "events"}, lambda v: v.events),
    "unseen_events": Operator({(): "events"}, lambda v: v.unseen),
    "all_events": Operator({(): "events"}, lambda v: v.pairs),
    "start": Operator({(): "event"}, lambda v: v.start),
    "end": Operator({(): "event"}, lambda v: v.end),
    "unique": Operator({("objects",): "object", ("events",): "event"}, _unique),
    "count": Operator({("objects",): "number", ("events",): "number"}, lambda v, items: len(items)),
    "exist": Operator(
        {("objects",): "answer", ("events",): "answer"}, lambda v, items: _yes(bool(items))
    ),
    "negate": Operator({("answer",): "answer"}, lambda v, value: _yes(value == "no")),
    "belong_to": Operator({("object", "events"): "answer", ("event", "events"): "answer"}, _belong),
    "filter_order": Operator({("events", "order"): "event"}, _order),
    "filter_before": Operator(
        {("events", "event"): "events"}, lambda v, items, e: [x for x in items if x.frame < e.frame]
    ),
    "filter_after": Operator(
        {("events", "event"): "events"}, lambda v, items, e: [x for x in items if x.frame > e.frame]
    ),
    "filter_ancestor": Operator({("events", "event"): "events"}, _ancestor),
    "filter_moving": Operator({("objects", "frame"): "objects"}, _in_state(True)),
    "filter_stationary": Operator({("objects", "frame"): "objects"}, _in_state(False)),
    "get_frame": Operator({("event",): "frame"}, lambda v, e: e.frame),
    "get_object": Operator({("event",): "object"}, _event_object),
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
        {("object",): "answer"}, lambda v, o, name=_name: v.attribute[name][o]
    )

# The number of operands; it is the same in all signatures of an operator.
ARITY = {name: len(next(iter(operator.signatures))) for name, operator in OPERATORS.items()}

LITERALS: dict[str, tuple[str, Any]] = {
    value: (name, value) for name, values in ATTRIBUTES.items() for value in values
}
LITERALS |= {order: ("order", order) for order in ORDERS} | {"null": ("frame", None)}


def check_program(program: Sequence[str]) -> tuple[str, ...]:
    """The types that a program leaves on the stack.

    Raises UserError for an unknown operator, or operands of a wrong type.
    """
    return tuple(evaluate_program(program, None)[0])


def run_programs(video: VideoEvents, *programs: Iterable[str]) -> str:
    """Run programs one after the other on one stack; returns the answer as in CLEVRER's files.

    Raises UserError for an unknown operator, operands of a wrong type, or a `unique` or
    `filter_order` that finds nothing.
    """
    types, values = evaluate_program([token for program in programs for token in program], video)
    if len(types) != 1 or types[0] not in ("answer", "number"):
        raise UserError(
            f"a program must leave one answer; it leaves {', '.join(types) or 'nothing'}"
        )
    return str(values[0])


def evaluate_program(
    program: Sequence[str], video: VideoEvents | None
) -> tuple[list[str], list[Any]]:
    """One pass over the tokens: the stack of types and, given a video, of values."""
    types: list[str] = []
    values: list[Any] = []
    for position, token in enumerate(program):
        operator = OPERATORS.get(token)
        if operator is None:
            if token not in LITERALS:
                raise UserError(
                    f"unknown operator {token!r} at token {position} of the program:"
                    f" {' '.join(program)}"
                )
            type_, value = LITERALS[token]
            types.append(type_)
            values.append(value)
            continue
        start = len(types) - ARITY[token]
        result = operator.signatures.get(tuple(types[start:])) if start >= 0 else None
        if result is None:
            needed = " or ".join("(" + ", ".join(s) + ")" for s in operator.signatures)
            raise UserError(
                f"{token} at token {position} needs {needed},"
                f" the stack holds ({', '.join(types)}): {' '.join(program)}"
            )
        types[start:] = [result]
        if video is not None:
            values[start:] = [operator.function(video, *values[start:])]
    return types, values
