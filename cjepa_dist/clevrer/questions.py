"""Reads the questions of a video: their programs, and the objects that they remove.

question or choice ──program_of──> tokens; parsed from the sentence where the file has no program
                                   (the real validation questions have none)
all questions ──removed_objects──> ids of the objects that counterfactual questions remove
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cjepa_dist.clevrer.parser import matching_objects, parse
from cjepa_dist.clevrer.scene import SceneObject
from cjepa_dist.errors import UserError


def scene_objects(annotation: dict[str, Any]) -> list[SceneObject]:
    """The objects of an annotation, sorted by id. Raises UserError if it lists none."""
    properties = annotation.get("object_property")
    if not properties:
        raise UserError(
            f"the annotation of scene {annotation.get('scene_index')}"
            " lists no objects (object_property)"
        )
    found = [SceneObject(o["object_id"], o["color"], o["material"], o["shape"]) for o in properties]
    return sorted(found, key=lambda o: o.object_id)


def program_of(entry: dict[str, Any]) -> list[str]:
    """The program of a question or a choice, parsed from its sentence if it has none.

    Raises UserError for an unknown sentence.
    """
    if found := entry.get("program"):
        return list(found)
    return parse(entry["choice"] if "choice" in entry else entry["question"])[1]


def question_kind(question: dict[str, Any]) -> str:
    """What a descriptive question asks: count, exist, query_color, ...

    That is its subtype, else the last step of its program, else its first two words.
    """
    program = question.get("program") or []
    return str(
        question.get("question_subtype")
        or (program[-1] if program else " ".join(question["question"].split()[:2]))
    )


def removed_objects(questions: dict[str, Any], objects: Sequence[SceneObject]) -> list[int]:
    """Ids of the objects that counterfactual questions remove, each once, in question order.

    Raises UserError if a description does not fit exactly one of `objects`.
    """
    removed: list[int] = []
    for question in questions["questions"]:
        if question["question_type"] != "counterfactual":
            continue
        tokens = program_of(question)
        found = matching_objects(tokens[: tokens.index("get_counterfact")], objects)
        if len(found) != 1:
            raise UserError(
                f"question {question['question_id']} of scene {questions.get('scene_index')}:"
                f" {question['question']!r} removes an object that {len(found)} of the"
                f" {len(objects)} objects fit"
            )
        removed += [o for o in found if o not in removed]
    return removed
