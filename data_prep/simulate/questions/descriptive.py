"""Makes descriptive questions: count, exist, query; eleven per video, in CLEVRER's order.

For each place in PLAN a target answer is drawn: yes and no equally often, counts as often as in the
real questions. Then random instances of the templates are tried until one has this answer, so that
the text alone says little about it. Instances whose program fails are never asked: no object
enters, or more than one object fits a description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from cjepa_dist.clevrer.descriptions import Describer, noun_phrase
from cjepa_dist.clevrer.events import VideoEvents
from cjepa_dist.clevrer.programs import run_programs
from cjepa_dist.clevrer.scene import ATTRIBUTES, VIDEO_FRAMES
from cjepa_dist.clevrer.templates import (
    TEMPLATES_BY_FAMILY,
    TIME_PROGRAMS,
    Filler,
    Template,
    event_filler,
    fill_template,
    fixed_filler,
)
from cjepa_dist.errors import UserError

# One place per question: the families that may stand there, and how often.
PLAN: tuple[dict[str, float], ...] = (
    *[{"count_state": 1.0}] * 2,
    *[{"count_event": 0.7, "count_collision": 0.3}] * 2,
    {"exist_event": 0.75, "exist_collision": 0.25},
    {"exist_state": 1.0},
    *[{"query_order": 0.35, "query_partner": 0.25, "query_partner_order": 0.4}] * 3,
    *[{"query_state": 1.0}] * 2,
)
# Targets; the questions that result have the real frequencies.
COUNT_WEIGHTS = {
    "0": 0.24,
    "1": 0.275,
    "2": 0.164,
    "3": 0.143,
    "4": 0.178,
}
ALLOWED_ANSWERS = {
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
# The attribute of a query; real frequencies.
ATTRIBUTE_WEIGHTS = {"color": 0.37, "material": 0.29, "shape": 0.34}
TIME_WEIGHTS = {"": 0.2, " when the video begins": 0.2, " when the video ends": 0.2, "event": 0.4}
# Which attributes a plural description names.
PLURAL_WEIGHTS: dict[tuple[str, ...], float] = {
    (): 0.22, ("color",): 0.2, ("material",): 0.16, ("shape",): 0.2,
    ("color", "material"): 0.06, ("color", "shape"): 0.07, ("material", "shape"): 0.09,
}  # fmt: skip
RANDOM_SHARE = 0.15  # share of plural descriptions with random values, which may fit no object
MAX_TRIES = 40

Question = dict[str, Any]


def descriptive_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """The descriptive questions of a video, without `question_id`.

    They are fewer than the places of PLAN if a family has no instance.
    """
    if not video.object_ids:
        return []
    texts: set[str] = set()
    questions = []
    for place in PLAN:
        families, weights = list(place), list(place.values())
        query = "query" in families[0]
        target = None if query else _draw_target(families[0], random)
        best: tuple[Template, str, list[str], str, str] | None = None
        for _ in range(MAX_TRIES):
            family = random.choices(families, weights)[0]
            template = random.choice(TEMPLATES_BY_FAMILY[family])
            blanks = DRAW_BLANKS[family](video, describer, random)
            if blanks is None:
                continue
            text, program = fill_template(template, blanks)
            if text in texts:
                continue
            try:
                answer = run_programs(video, program)
            except UserError:  # the description fits no object or several
                continue
            if answer not in ALLOWED_ANSWERS:
                continue
            if best is None or _count_distance(answer, target) < _count_distance(best[3], target):
                best = (template, text, program, answer, blanks["A"].text if query else "")
            if target is None or answer == target:
                break
        if best is not None:
            template, text, program, answer, attribute = best
            texts.add(text)
            subtype = f"query_{attribute}" if attribute else template.subtype
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


def _draw_target(family: str, random: Random) -> str:
    if family.startswith("count"):
        return random.choices(list(COUNT_WEIGHTS), list(COUNT_WEIGHTS.values()))[0]
    return "yes" if random.random() < 0.5 else "no"


def _count_distance(answer: str, target: str | None) -> int:
    """The difference between a count and its target; 0 for other answers."""
    return abs(int(answer) - int(target)) if target and target.isdigit() else 0


Blanks = dict[str, Filler]


def _draw_state(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
    time = _draw_time(video, describer, random)
    return time and {
        "OBJS": _draw_plural(video, random),
        "STATE": fixed_filler("STATE", random.choice(("moving", "stationary"))),
        "TIME": time,
    }


def _draw_event(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
    """More than half of them are about objects that enter or exit: random ones rarely fit."""
    order = _draw_order(video, describer, random)
    events = list(_entries_and_exits(video))
    pool, do = video.object_ids, "enter" if random.random() < 0.7 else "exit"
    if events and random.random() < 0.6:
        item, does = random.choice(events)
        pool, do = [item], does.removesuffix("s")
    return order and {
        "OBJS": _draw_plural(video, random, pool),
        "DO": fixed_filler("DO", do),
        "ORD": order,
    }


def _draw_collision(at_all: bool) -> Callable[[VideoEvents, Describer, Random], Blanks | None]:
    """`at_all`: the question may be about the complete video.

    "Are there collisions?" may not, because every video has some.
    """

    def draw(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
        order = _draw_order(video, describer, random)
        return {"ORD": order} if order and (at_all or order.text) else None

    return draw


def _draw_query_order(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
    do = "enters" if random.random() < 0.8 else "exits"
    return {
        "A": _draw_attribute(random),
        "ORDER": fixed_filler("ORDER", random.choice(("first", "last"))),
        "DOES": fixed_filler("DOES", do),
    }


def _draw_partner(ordered: bool) -> Callable[[VideoEvents, Describer, Random], Blanks | None]:
    def draw(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
        colliding = [o for e in video.observed if e.kind == "collision" for o in e.objects]
        if not colliding:
            return None
        item = random.choice(colliding)
        order = random.choice(
            ("first", "second", "last") if colliding.count(item) > 2 else ("first", "last")
        )
        return {
            "A": _draw_attribute(random),
            "X": describer(item),
            **({"ORDER": fixed_filler("ORDER", order)} if ordered else {}),
        }

    return draw


def _draw_query_state(video: VideoEvents, describer: Describer, random: Random) -> Blanks | None:
    """Describes an object that is in this state at this time, so that most questions fit."""
    time = _draw_time(video, describer, random)
    if time is None:
        return None
    moving = random.random() < 0.5
    frame = {"null": None, "start get_frame": 0, "end get_frame": VIDEO_FRAMES - 1}.get(
        time.program, -1
    )
    pool = video.object_ids
    if frame is None:
        pool = [o for o in pool if any(video.moving[o]) == moving]
    elif frame >= 0:
        pool = [o for o in pool if (video.moving if moving else video.resting)[o][frame]]
    if not pool:
        return None
    item, queried = random.choice(pool), _draw_attribute(random)
    others = [name for name in ATTRIBUTES if name != queried.text]
    named = random.choices((others[:1], others[1:], others, []), (0.4, 0.4, 0.12, 0.08))[0]
    values = {name: video.attribute[name][item] if name in named else "" for name in ATTRIBUTES}
    return {
        "A": queried,
        "D": noun_phrase(**values),
        "STATE": fixed_filler("STATE", "moving" if moving else "stationary"),
        "TIME": time,
    }


DRAW_BLANKS: dict[str, Callable[[VideoEvents, Describer, Random], Blanks | None]] = {
    "count_state": _draw_state,
    "exist_state": _draw_state,
    "count_event": _draw_event,
    "exist_event": _draw_event,
    "count_collision": _draw_collision(True),
    "exist_collision": _draw_collision(False),
    "query_order": _draw_query_order,
    "query_partner": _draw_partner(False),
    "query_partner_order": _draw_partner(True),
    "query_state": _draw_query_state,
}


def _draw_attribute(random: Random) -> Filler:
    return fixed_filler(
        "A", random.choices(list(ATTRIBUTE_WEIGHTS), list(ATTRIBUTE_WEIGHTS.values()))[0]
    )


def _draw_plural(video: VideoEvents, random: Random, pool: list[int] | None = None) -> Filler:
    """A plural description that fits an object of `pool`, or (FOREIGN) perhaps none."""
    names = random.choices(list(PLURAL_WEIGHTS), list(PLURAL_WEIGHTS.values()))[0]
    if random.random() < RANDOM_SHARE:
        values = {
            name: random.choice(ATTRIBUTES[name]) if name in names else "" for name in ATTRIBUTES
        }
    else:
        item = random.choice(pool or video.object_ids)
        values = {name: video.attribute[name][item] if name in names else "" for name in ATTRIBUTES}
    return noun_phrase(**values, plural=True)


def _entries_and_exits(video: VideoEvents) -> Iterator[tuple[int, str]]:
    return (
        (e.objects[0], "enters" if e.kind == "in" else "exits")
        for e in video.observed
        if e.kind != "collision"
    )


def _draw_time(video: VideoEvents, describer: Describer, random: Random) -> Filler | None:
    text = random.choices(list(TIME_WEIGHTS), list(TIME_WEIGHTS.values()))[0]
    if text != "event":
        return Filler(text, TIME_PROGRAMS[text])
    events = list(_entries_and_exits(video))
    if not events:
        return None
    item, does = random.choice(events)
    return event_filler("TIME", "when", describer(item), does)


def _draw_order(video: VideoEvents, describer: Describer, random: Random) -> Filler | None:
    if random.random() < 0.35:
        return Filler("", "events")
    events = list(_entries_and_exits(video))
    if not events:
        return None
    item, does = random.choice(events)
    return event_filler("ORD", random.choice(("before", "after")), describer(item), does)
