"""The templates of CLEVRER's questions: each is a sentence and a program with the same blanks.

    TEMPLATES[i].text    "How many {OBJS} are {STATE}{TIME}?"
    TEMPLATES[i].program "objects {OBJS} {TIME} filter_{STATE} count"

The generator fills the blanks of both. parser.py goes back from a sentence to its program. The
templates were collected from the real questions.
"""

from __future__ import annotations

from typing import NamedTuple

from cjepa_dist.clevrer.scene import ATTRIBUTES


class Template(NamedTuple):
    """A sentence and its program.

    `kind`: the question type, or "choice"; `family`: what is asked; `subtype`: as in the
    files of CLEVRER.
    """

    kind: str
    family: str
    text: str
    program: str
    subtype: str = ""


class Filler(NamedTuple):
    """What fills a blank, in the sentence and in the program."""

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


TEMPLATES: tuple[Template, ...] = (
    Template(
        "descriptive",
        "count_state",
        "How many {OBJS} are {STATE}{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} count",
        "count",
    ),
    Template(
        "descriptive",
        "count_state",
        "How many {STATE} {OBJS} are there{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} count",
        "count",
    ),
    Template(
        "descriptive",
        "count_event",
        "How many {OBJS} {DO} the scene{ORD}?",
        "{ORD} objects {OBJS} {DO} count",
        "count",
    ),
    Template(
        "descriptive",
        "count_collision",
        "How many collisions happen{ORD}?",
        "{ORD} objects filter_collision count",
        "count",
    ),
    Template(
        "descriptive",
        "exist_event",
        "Are there any {OBJS} that {DO} the scene{ORD}?",
        "{ORD} objects {OBJS} {DO} exist",
        "exist",
    ),
    Template(
        "descriptive",
        "exist_collision",
        "Are there collisions{ORD}?",
        "{ORD} objects filter_collision exist",
        "exist",
    ),
    Template(
        "descriptive",
        "exist_state",
        "Are there any {STATE} {OBJS}{TIME}?",
        "objects {OBJS} {TIME} filter_{STATE} exist",
        "exist",
    ),
    *(
        Template("descriptive", family, f"{what} {text}?", program, "query")
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
    Template(
        "explanatory",
        "collision",
        RESPONSIBLE + "collision between the {X} and the {Y}?",
        CAUSE % COLLISION,
    ),
    Template(
        "explanatory", "collision", RESPONSIBLE + "{X}'s colliding with the {Y}?", CAUSE % COLLISION
    ),
    Template("explanatory", "exit", RESPONSIBLE + "{X}'s exit?", CAUSE % EXIT),
    Template("explanatory", "exit", RESPONSIBLE + "{X}'s exiting the scene?", CAUSE % EXIT),
    Template("predictive", "next", "What will happen next?", "unseen_events belong_to"),
    Template("predictive", "next", "Which event will happen next?", "unseen_events belong_to"),
    *(
        Template("counterfactual", "counterfactual", text, COUNTERFACT)
        for what in ("what", "which event", "which of the following")
        for text in (
            what.capitalize() + " will {NOT}happen if the {X} is removed?",
            what.capitalize() + " will {NOT}happen without the {X}?",
            "If the {X} is removed, " + what + " will {NOT}happen?",
            "Without the {X}, " + what + " will {NOT}happen?",
        )
    ),
    Template("choice", "presence", "the presence of the {X}", "objects {X} unique"),
    Template(
        "choice",
        "cause_collision",
        "the collision between the {X} and the {Y}",
        "events " + COLLISION,
    ),
    Template(
        "choice", "cause_collision", "the {X}'s colliding with the {Y}", "events " + COLLISION
    ),
    Template(
        "choice", "entrance", "the {X}'s entrance", "events objects {X} unique filter_in unique"
    ),
    Template(
        "choice",
        "entrance",
        "the {X}'s entering the scene",
        "events objects {X} unique filter_in unique",
    ),
    Template("choice", "pair", "The {X} collides with the {Y}", "all_events " + COLLISION),
    Template("choice", "pair", "The {X} and the {Y} collide", "all_events " + COLLISION),
)

TEMPLATES_BY_FAMILY: dict[str, list[Template]] = {}
for _template in TEMPLATES:
    TEMPLATES_BY_FAMILY.setdefault(_template.family, []).append(_template)

# Blanks with a fixed set of fillers. TIME and ORD may also name an event: `event_filler`.
TIME_PROGRAMS = {
    "": "null",
    " when the video begins": "start get_frame",
    " when the video ends": "end get_frame",
}
DOES = {"enters": "filter_in", "exits": "filter_out"}
DO = {"enter": "filter_in", "exit": "filter_out"}
NOT = {"": "", "not ": " negate"}
FIXED_FILLERS = {
    "STATE": {"moving": "moving", "stationary": "stationary"},
    "DO": DO,
    "DOES": DOES,
    "ORDER": {"first": "first", "second": "second", "last": "last"},
    "A": {name: name for name in ATTRIBUTES},
    "NOT": NOT,
}


def fill_template(template: Template, blanks: dict[str, Filler]) -> tuple[str, list[str]]:
    """(sentence, program) of a template with its blanks filled."""
    text = template.text.format_map({name: filler.text for name, filler in blanks.items()})
    return text, template.program.format_map(
        {name: filler.program for name, filler in blanks.items()}
    ).split()


def fixed_filler(name: str, text: str) -> Filler:
    """A filler of one of the fixed blanks."""
    return Filler(text, FIXED_FILLERS[name][text])


def event_filler(blank: str, relation: str, described: Filler, does: str) -> Filler:
    """ " when|before|after the X enters|exits the scene" for the blank TIME or ORD."""
    event = f"events objects {described.program} unique {DOES[does]} unique"
    program = f"{event} get_frame" if blank == "TIME" else f"events {event} filter_{relation}"
    return Filler(f" {relation} the {described.text} {does} the scene", program)
