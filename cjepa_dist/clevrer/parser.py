"""Reads questions and choices: a sentence -> its template and program.

"What color is the object that is stationary?" ──parse──> (template, [... filter_stationary ...])

The tests check it on the real explanatory questions, whose programs are public.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from cjepa_dist.clevrer.scene import ATTRIBUTES, SceneObject
from cjepa_dist.clevrer.templates import (
    FIXED_FILLERS,
    TEMPLATES,
    TIME_PROGRAMS,
    Filler,
    Template,
    event_filler,
    fill_template,
)
from cjepa_dist.errors import UserError

# Regular expressions of the blanks.
_NOUN = "(?:(?:{}) )?(?:(?:{}) )?(?:{}|object)".format(
    *("|".join(values) for values in ATTRIBUTES.values())
)
_EVENT = rf"(?: {{relation}} the {_NOUN} (?:enters|exits) the scene)"
_TIMES = "|".join(text for text in TIME_PROGRAMS if text)
_BLANKS = {
    **{
        name: "(?:" + "|".join(fixed) + ")"
        for name, fixed in FIXED_FILLERS.items()
        if name != "NOT"
    },
    "NOT": "(?:not )?",
    **{name: _NOUN for name in "XYD"},
    "OBJS": _NOUN + "s",
    "TIME": f"(?:{_TIMES}|{_EVENT.replace('{relation}', 'when')})?",
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


_PATTERNS = [(_pattern(template.text), template) for template in TEMPLATES]


def parse(sentence: str) -> tuple[Template, list[str]]:
    """A question or a choice -> its template and program. UserError if no template fits."""
    text = sentence.lower().replace("?", "").strip()
    for pattern, template in _PATTERNS:
        if (match := pattern.fullmatch(text)) is not None:
            blanks = {
                name: Filler(value, _filler_program(name, value))
                for name, value in match.groupdict().items()
            }
            return template, fill_template(template, blanks)[1]
    raise UserError(f"no template of CLEVRER's questions fits {sentence!r}")


def _filler_program(name: str, text: str) -> str:
    """The program of a filler from its words."""
    if name in FIXED_FILLERS:
        return FIXED_FILLERS[name][text]
    if name in ("TIME", "ORD"):
        if text in TIME_PROGRAMS:
            return TIME_PROGRAMS[text] if name == "TIME" else "events"
        relation, _, *described, does, _, _ = text.split()
        return event_filler(
            name, relation, Filler("", _filler_program("X", " ".join(described))), does
        ).program
    words = text.removesuffix("s").split()
    return " ".join(
        f"{word} filter_{kind}"
        for word in words
        for kind, values in ATTRIBUTES.items()
        if word in values
    )


def matching_objects(program: Sequence[str], objects: Sequence[SceneObject]) -> list[int]:
    """Ids of the objects that pass the attribute filters in a part of a program."""
    pairs = [(token.removeprefix("filter_"), word) for word, token in itertools.pairwise(program)]
    filters = [(name, word) for name, word in pairs if name in ATTRIBUTES]
    return [
        o.object_id for o in objects if all(getattr(o, name) == value for name, value in filters)
    ]
