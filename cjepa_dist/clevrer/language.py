"""The surface forms of CLEVRER's questions: each a sentence and a program with the same blanks.

    FORMS[i].text    "How many {OBJS} are {STATE}{TIME}?"
    FORMS[i].program "objects {OBJS} {TIME} filter_{STATE} count"

The generator fills the blanks of both; `parse` reads a sentence back to (form, program). Proven on the real explanatory questions,
whose programs are public. Source of the forms: spec/clevrer.md, from the real questions.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from cjepa_dist.clevrer.programs import ATTRIBUTES
from cjepa_dist.clevrer.scene import SceneObject
from cjepa_dist.errors import UserError


class Form(NamedTuple):
    """A sentence and its program. `kind`: the question type, or "choice"; `family`: what is asked; `subtype`: as CLEVRER's files."""

    kind: str
    family: str
    text: str
    program: str
    subtype: str = ""


class Filler(NamedTuple):
    """What stands in a blank: in the sentence and in the program."""

    text: str
    program: str


COLLISION = "objects {X} unique filter_collision objects {Y} unique filter_collision unique"
EXIT = "objects {X} unique filter_out unique"
CAUSE = "events events %s filter_ancestor belong_to{NOT}"
COUNTERFACT = "all_events objects {X} unique get_counterfact belong_to{NOT}"
RESPONSIBLE = "Which of the following is {NOT}responsible for the "
PARTNER = (
    "events objects {X} unique filter_collision %s objects {X} unique get_col_partner query_{A}"
)
STATES = "objects {D} {TIME} filter_{STATE} unique query_{A}"

FORMS: tuple[Form, ...] = (
    Form(
        "descriptive",
        "count_state",
        "How many {OBJS} are {STATE}{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} count",
        "count",
    ),
    Form(
        "descriptive",
        "count_state",
        "How many {STATE} {OBJS} are there{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} count",
        "count",
    ),
    Form(
        "descriptive",
        "count_event",
        "How many {OBJS} {DO} the scene{ORD}?",
        "{ORD} objects {OBJS} {DO} count",
        "count",
    ),
    Form(
        "descriptive",
        "count_collision",
        "How many collisions happen{ORD}?",
        "{ORD} objects filter_collision count",
        "count",
    ),
    Form(
        "descriptive",
        "exist_event",
        "Are there any {OBJS} that {DO} the scene{ORD}?",
        "{ORD} objects {OBJS} {DO} exist",
        "exist",
    ),
    Form(
        "descriptive",
        "exist_collision",
        "Are there collisions{ORD}?",
        "{ORD} objects filter_collision exist",
        "exist",
    ),
    Form(
        "descriptive",
        "exist_state",
        "Are there any {STATE} {OBJS}{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} exist",
        "exist",
    ),
    *(
        Form("descriptive", family, f"{what} {text}?", program, "query")
        for what in ("What {A} is the", "What is the {A} of the")
        for family, text, program in (
            (
                "query_order",
                "{ORDER} object that {DOES} the scene",
                "events objects {DOES} {ORDER} filter_order get_object query_{A}",
            ),
            ("query_partner", "object to collide with the {X}", PARTNER % "unique"),
            (
                "query_partner_order",
                "{ORDER} object to collide with the {X}",
                PARTNER % "{ORDER} filter_order",
            ),
            ("query_state", "{STATE} {D}{TIME}", STATES),
            ("query_state", "{D} that is {STATE}{TIME}", STATES),
        )
    ),
    Form(
        "explanatory",
        "collision",
        RESPONSIBLE + "collision between the {X} and the {Y}?",
        CAUSE % COLLISION,
    ),
    Form(
        "explanatory", "collision", RESPONSIBLE + "{X}'s colliding with the {Y}?", CAUSE % COLLISION
    ),
    Form("explanatory", "exit", RESPONSIBLE + "{X}'s exit?", CAUSE % EXIT),
    Form("explanatory", "exit", RESPONSIBLE + "{X}'s exiting the scene?", CAUSE % EXIT),
    Form("predictive", "next", "What will happen next?", "unseen_events belong_to"),
    Form("predictive", "next", "Which event will happen next?", "unseen_events belong_to"),
    *(
        Form("counterfactual", "counterfactual", text, COUNTERFACT)
        for what in ("what", "which event", "which of the following")
        for text in (
            what.capitalize() + " will {NOT}happen if the {X} is removed?",
            what.capitalize() + " will {NOT}happen without the {X}?",
            "If the {X} is removed, " + what + " will {NOT}happen?",
            "Without the {X}, " + what + " will {NOT}happen?",
        )
    ),
    Form("choice", "presence", "the presence of the {X}", "objects {X} unique"),
    Form(
        "choice",
        "cause_collision",
        "the collision between the {X} and the {Y}",
        "events " + COLLISION,
    ),
    Form("choice", "cause_collision", "the {X}'s colliding with the {Y}", "events " + COLLISION),
    Form("choice", "entrance", "the {X}'s entrance", "events objects {X} unique filter_in unique"),
    Form(
        "choice",
        "entrance",
        "the {X}'s entering the scene",
        "events objects {X} unique filter_in unique",
    ),
    Form("choice", "pair", "The {X} collides with the {Y}", "all_events " + COLLISION),
    Form("choice", "pair", "The {X} and the {Y} collide", "all_events " + COLLISION),
)
BY_FAMILY: dict[str, list[Form]] = {}
for _form in FORMS:
    BY_FAMILY.setdefault(_form.family, []).append(_form)

# Blanks with a fixed set of fillers. TIME and ORD also take an event of a described object: `at_event`.
TIMES = {
    "": "null",
    " when the video begins": "start get_frame",
    " when the video ends": "end get_frame",
}
DOES = {"enters": "filter_in", "exits": "filter_out"}
DO = {"enter": "filter_in", "exit": "filter_out"}
NOT = {"": "", "not ": " negate"}
PLAIN = {
    "STATE": {"moving": "moving", "stationary": "stationary"},
    "DO": DO,
    "DOES": DOES,
    "ORDER": {"first": "first", "second": "second", "last": "last"},
    "A": {name: name for name in ATTRIBUTES},
    "NOT": NOT,
}


def fill(form: Form, blanks: dict[str, Filler]) -> tuple[str, list[str]]:
    """(sentence, program) of a form with its blanks filled."""
    text = form.text.format_map({name: filler.text for name, filler in blanks.items()})
    return text, form.program.format_map(
        {name: filler.program for name, filler in blanks.items()}
    ).split()


def plain(name: str, text: str) -> Filler:
    """A filler of one of the fixed blanks."""
    return Filler(text, PLAIN[name][text])


def at_event(blank: str, relation: str, described: Filler, does: str) -> Filler:
    """ " when|before|after the X enters|exits the scene" for the blank TIME or ORD."""
    event = f"events objects {described.program} unique {DOES[does]} unique"
    program = f"{event} get_frame" if blank == "TIME" else f"events {event} filter_{relation}"
    return Filler(f" {relation} the {described.text} {does} the scene", program)


# --- descriptions ----------------------------------------------------------------------------------------------------

# How often an object is described by which attributes, given that all seven would be unique; set so that what comes out in scenes of
# 3 to 6 objects is near the real frequencies (.33 colour + shape, .18 colour, .16 shape, .125 material + shape, .10 all, .085, .014).
USE: dict[tuple[str, ...], float] = {
    ("color", "shape"): 0.22,
    ("color",): 0.22,
    ("shape",): 1.3,
    ("material", "shape"): 0.17,
    ("color", "material", "shape"): 0.048,
    ("color", "material"): 0.055,
    ("material",): 0.15,
}


@lru_cache(maxsize=4096)
def phrase(color: str, material: str, shape: str, plural: bool = False) -> Filler:
    """A description: "" stands for an attribute that is not named."""
    values = (("color", color), ("material", material), ("shape", shape))
    words = [value for name, value in values[:2] if value] + [
        (shape or "object") + ("s" if plural else "")
    ]
    return Filler(
        " ".join(words), " ".join(f"{value} filter_{name}" for name, value in values if value)
    )


class Namer:
    """Unique definite descriptions of the objects of a scene, drawn anew at each mention."""

    def __init__(self, objects: Sequence[SceneObject], random: Random) -> None:
        self.random = random
        subsets = list(USE)
        values = [
            tuple(tuple(getattr(o, name) for name in subset) for subset in subsets) for o in objects
        ]
        times: Counter = Counter((i, value) for row in values for i, value in enumerate(row))
        self.options: dict[int, tuple[list[Filler], list[float]]] = {}
        for item, row in zip(objects, values):
            fillers, weights = [], []
            for i, value in enumerate(row):
                if times[i, value] == 1:
                    named = dict(zip(subsets[i], value))
                    fillers.append(
                        phrase(
                            named.get("color", ""),
                            named.get("material", ""),
                            named.get("shape", ""),
                        )
                    )
                    weights.append(USE[subsets[i]])
            if not fillers:
                raise UserError(
                    f"object {item.object_id} has the colour, material and shape of another object of its scene"
                )
            self.options[item.object_id] = (fillers, weights)

    def __call__(self, object_id: int) -> Filler:
        """A description of the object."""
        fillers, weights = self.options[object_id]
        return self.random.choices(fillers, weights)[0]


# --- reading ---------------------------------------------------------------------------------------------------------

_NOUN = "(?:(?:{}) )?(?:(?:{}) )?(?:{}|object)".format(
    *("|".join(values) for values in ATTRIBUTES.values())
)
_EVENT = rf"(?: {{relation}} the {_NOUN} (?:enters|exits) the scene)"
_BLANKS = {
    **{name: "(?:" + "|".join(fixed) + ")" for name, fixed in PLAIN.items() if name != "NOT"},
    "NOT": "(?:not )?",
    **{name: _NOUN for name in "XYD"},
    "OBJS": _NOUN + "s",
    "TIME": f"(?:{'|'.join(t for t in TIMES if t)}|{_EVENT.replace('{relation}', 'when')})?",
    "ORD": f"{_EVENT.replace('{relation}', '(?:before|after)')}?",
}


def _pattern(text: str) -> re.Pattern[str]:
    used: Counter = Counter()
    pieces = []
    for piece in re.split(r"(\{[A-Z]+\})", text):
        if piece.startswith("{"):
            name = piece[1:-1]
            used[name] += 1
            pieces.append(f"(?P<{name}>{_BLANKS[name]})" if used[name] == 1 else f"(?P={name})")
        else:
            pieces.append(re.escape(piece.lower().replace("?", "")))
    return re.compile("".join(pieces))


_PATTERNS = [(_pattern(form.text), form) for form in FORMS]


def parse(sentence: str) -> tuple[Form, list[str]]:
    """A question or a choice -> its form and program. Raises UserError if no form of CLEVRER fits."""
    text = sentence.lower().replace("?", "").strip()
    for pattern, form in _PATTERNS:
        if (match := pattern.fullmatch(text)) is not None:
            blanks = {
                name: Filler(value, _read(name, value)) for name, value in match.groupdict().items()
            }
            return form, fill(form, blanks)[1]
    raise UserError(f"no form of CLEVRER's questions fits {sentence!r}")


def _read(name: str, text: str) -> str:
    """The program of a filler from its words."""
    if name in PLAIN:
        return PLAIN[name][text]
    if name in ("TIME", "ORD"):
        if text in TIMES:
            return TIMES[text] if name == "TIME" else "events"
        relation, _, *described, does, _, _ = text.split()
        return at_event(name, relation, Filler("", _read("X", " ".join(described))), does).program
    words = text.removesuffix("s").split()
    return " ".join(
        f"{word} filter_{kind}"
        for word in words
        for kind, values in ATTRIBUTES.items()
        if word in values
    )


def described(program: Sequence[str], objects: Sequence[SceneObject]) -> list[int]:
    """Ids of the objects that pass the attribute filters of a piece of a program."""
    pairs = [(token.removeprefix("filter_"), word) for word, token in itertools.pairwise(program)]
    wanted = [(name, word) for name, word in pairs if name in ATTRIBUTES]
    return [
        o.object_id for o in objects if all(getattr(o, name) == value for name, value in wanted)
    ]
