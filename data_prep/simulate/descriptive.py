"""Descriptive questions: count, exist, query; eleven a video in CLEVRER's order.

For each place in PLAN a target answer is drawn first (yes and no alike; counts as often as in the real questions), then random instances of
the forms until one has that answer: so text alone says little. Instances whose program does not run (nothing enters, more than one such
object) are never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from cjepa_dist.clevrer.language import (
    BY_FAMILY,
    TIMES,
    Filler,
    Form,
    Namer,
    at_event,
    fill,
    phrase,
    plain,
)
from cjepa_dist.clevrer.programs import ATTRIBUTES, World
from cjepa_dist.clevrer.scene import SHOWN
from cjepa_dist.errors import UserError

# One place for each question: the families that may stand there, and how often.
PLAN: tuple[dict[str, float], ...] = (
    *[{"count_state": 1.0}] * 2,
    *[{"count_event": 0.7, "count_collision": 0.3}] * 2,
    {"exist_event": 0.75, "exist_collision": 0.25},
    {"exist_state": 1.0},
    *[{"query_order": 0.35, "query_partner": 0.25, "query_partner_order": 0.4}] * 3,
    *[{"query_state": 1.0}] * 2,
)
COUNTS = {
    "0": 0.24,
    "1": 0.275,
    "2": 0.164,
    "3": 0.143,
    "4": 0.178,
}  # targets; what comes out has the real frequencies
ANSWERS = {
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "yes",
    "no",
    *(v for values in ATTRIBUTES.values() for v in values),
}
ASKED = {"color": 0.37, "material": 0.29, "shape": 0.34}  # attribute of a query, real frequencies
TIME = {"": 0.2, " when the video begins": 0.2, " when the video ends": 0.2, "event": 0.4}
# Which attributes a plural description names.
PLURAL: dict[tuple[str, ...], float] = {
    (): 0.22, ("color",): 0.2, ("material",): 0.16, ("shape",): 0.2,
    ("color", "material"): 0.06, ("color", "shape"): 0.07, ("material", "shape"): 0.09,
}  # fmt: skip
FOREIGN = 0.15  # share of plural descriptions with random values, which may fit no object
TRIES = 40

Question = dict[str, Any]


def descriptive(world: World, namer: Namer, random: Random) -> list[Question]:
    """The descriptive questions of a video, without `question_id`; fewer than PLAN where a family has no instance."""
    if not world.objects:
        return []
    asked: set[str] = set()
    questions = []
    for place in PLAN:
        families, weights = list(place), list(place.values())
        query = "query" in families[0]
        target = None if query else _target(families[0], random)
        best: tuple[Form, str, list[str], str, str] | None = None
        for _ in range(TRIES):
            family = random.choices(families, weights)[0]
            form = random.choice(BY_FAMILY[family])
            blanks = FILL[family](world, namer, random)
            if blanks is None:
                continue
            text, program = fill(form, blanks)
            if text in asked:
                continue
            try:
                answer = world.run(program)
            except UserError:  # the description fits none or several: no question of CLEVRER's
                continue
            if answer not in ANSWERS:
                continue
            if best is None or _off(answer, target) < _off(best[3], target):
                best = (form, text, program, answer, blanks["A"].text if query else "")
            if target is None or answer == target:
                break
        if best is not None:
            form, text, program, answer, attribute = best
            asked.add(text)
            subtype = f"query_{attribute}" if attribute else form.subtype
            questions.append(
                {
                    "question": text,
                    "question_type": "descriptive",
                    "question_subtype": subtype,
                    "program": program,
                    "answer": answer,
                }
            )
    return questions


def _target(family: str, random: Random) -> str:
    if family.startswith("count"):
        return random.choices(list(COUNTS), list(COUNTS.values()))[0]
    return "yes" if random.random() < 0.5 else "no"


def _off(answer: str, target: str | None) -> int:
    """How far an answer is from the one that is sought: of counts the difference."""
    return abs(int(answer) - int(target)) if target and target.isdigit() else 0


Blanks = dict[str, Filler]


def _state(world: World, namer: Namer, random: Random) -> Blanks | None:
    time = _time(world, namer, random)
    return time and {
        "OBJS": _plural(world, random),
        "STATE": plain("STATE", random.choice(("moving", "stationary"))),
        "TIME": time,
    }


def _event(world: World, namer: Namer, random: Random) -> Blanks | None:
    """Half of the time about objects that do enter or exit: a random description fits none too often."""
    order = _order(world, namer, random)
    events = list(_io(world))
    pool, do = world.objects, "enter" if random.random() < 0.7 else "exit"
    if events and random.random() < 0.6:
        item, does = random.choice(events)
        pool, do = [item], does.removesuffix("s")
    return order and {"OBJS": _plural(world, random, pool), "DO": plain("DO", do), "ORD": order}


def _collision(at_all: bool) -> Callable[[World, Namer, Random], Blanks | None]:
    """`at_all`: the question may be about the whole video. "Are there collisions?" may not: a video without one is not made."""

    def draw(world: World, namer: Namer, random: Random) -> Blanks | None:
        order = _order(world, namer, random)
        return {"ORD": order} if order and (at_all or order.text) else None

    return draw


def _query_order(world: World, namer: Namer, random: Random) -> Blanks | None:
    do = "enters" if random.random() < 0.8 else "exits"
    return {
        "A": _attribute(random),
        "ORDER": plain("ORDER", random.choice(("first", "last"))),
        "DOES": plain("DOES", do),
    }


def _partner(ordered: bool) -> Callable[[World, Namer, Random], Blanks | None]:
    def draw(world: World, namer: Namer, random: Random) -> Blanks | None:
        hits = [o for e in world.happened if e.kind == "collision" for o in e.objects]
        if not hits:
            return None
        item = random.choice(hits)
        order = random.choice(
            ("first", "second", "last") if hits.count(item) > 2 else ("first", "last")
        )
        return {
            "A": _attribute(random),
            "X": namer(item),
            **({"ORDER": plain("ORDER", order)} if ordered else {}),
        }

    return draw


def _query_state(world: World, namer: Namer, random: Random) -> Blanks | None:
    """The described object is drawn among those in the state at the time, so that most descriptions fit."""
    time = _time(world, namer, random)
    if time is None:
        return None
    moving = random.random() < 0.5
    frame = {"null": None, "start get_frame": 0, "end get_frame": SHOWN - 1}.get(time.program, -1)
    pool = world.objects
    if frame is None:
        pool = [o for o in pool if any(world.moving[o]) == moving]
    elif frame >= 0:
        pool = [o for o in pool if (world.moving if moving else world.resting)[o][frame]]
    if not pool:
        return None
    item, asked = random.choice(pool), _attribute(random)
    others = [name for name in ATTRIBUTES if name != asked.text]
    named = random.choices((others[:1], others[1:], others, []), (0.4, 0.4, 0.12, 0.08))[0]
    values = {name: world.attribute[name][item] if name in named else "" for name in ATTRIBUTES}
    return {
        "A": asked,
        "D": phrase(**values),
        "STATE": plain("STATE", "moving" if moving else "stationary"),
        "TIME": time,
    }


FILL: dict[str, Callable[[World, Namer, Random], Blanks | None]] = {
    "count_state": _state,
    "exist_state": _state,
    "count_event": _event,
    "exist_event": _event,
    "count_collision": _collision(True),
    "exist_collision": _collision(False),
    "query_order": _query_order,
    "query_partner": _partner(False),
    "query_partner_order": _partner(True),
    "query_state": _query_state,
}


def _attribute(random: Random) -> Filler:
    return plain("A", random.choices(list(ASKED), list(ASKED.values()))[0])


def _plural(world: World, random: Random, pool: list[int] | None = None) -> Filler:
    """A plural description that fits an object of `pool`, or (FOREIGN) perhaps none."""
    names = random.choices(list(PLURAL), list(PLURAL.values()))[0]
    if random.random() < FOREIGN:
        values = {
            name: random.choice(ATTRIBUTES[name]) if name in names else "" for name in ATTRIBUTES
        }
    else:
        item = random.choice(pool or world.objects)
        values = {name: world.attribute[name][item] if name in names else "" for name in ATTRIBUTES}
    return phrase(**values, plural=True)


def _io(world: World) -> Iterator[tuple[int, str]]:
    return (
        (e.objects[0], "enters" if e.kind == "in" else "exits")
        for e in world.happened
        if e.kind != "collision"
    )


def _time(world: World, namer: Namer, random: Random) -> Filler | None:
    text = random.choices(list(TIME), list(TIME.values()))[0]
    if text != "event":
        return Filler(text, TIMES[text])
    events = list(_io(world))
    if not events:
        return None
    item, does = random.choice(events)
    return at_event("TIME", "when", namer(item), does)


def _order(world: World, namer: Namer, random: Random) -> Filler | None:
    if random.random() < 0.35:
        return Filler("", "events")
    events = list(_io(world))
    if not events:
        return None
    item, does = random.choice(events)
    return at_event("ORD", random.choice(("before", "after")), namer(item), does)
