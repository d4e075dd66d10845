"""What the questions of a video ask for: their programs, and the objects that they remove.

questions.json ──program──> tokens (parsed from the sentence where the file has none, as real validation questions)
               └─removed_objects(.., objects(annotation))──> ids of the objects without which a video is asked about
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cjepa_dist.clevrer.language import described, parse
from cjepa_dist.clevrer.scene import SceneObject
from cjepa_dist.errors import UserError


def objects(annotation: dict[str, Any]) -> list[SceneObject]:
    """The objects of an annotation JSON in the order of their ids. Raises UserError where it lists none."""
    listed = annotation.get("object_property")
    if not listed:
        raise UserError(
            f"the annotation of scene {annotation.get('scene_index')} lists no objects (object_property)"
        )
    found = [SceneObject(o["object_id"], o["color"], o["material"], o["shape"]) for o in listed]
    return sorted(found, key=lambda o: o.object_id)


def program(asked: dict[str, Any]) -> list[str]:
    """The program of a question or of a choice, from its sentence where it has none. Raises UserError for an unknown sentence."""
    if found := asked.get("program"):
        return list(found)
    return parse(asked["choice"] if "choice" in asked else asked["question"])[1]


def removed_objects(questions: dict[str, Any], objects: Sequence[SceneObject]) -> list[int]:
    """Ids of the objects that the counterfactual questions of a video remove, each once, in the order of the questions.

    Raises UserError if a description does not fit exactly one of `objects`.
    """
    removed: list[int] = []
    for question in questions["questions"]:
        if question["question_type"] != "counterfactual":
            continue
        tokens = program(question)
        found = described(tokens[: tokens.index("get_counterfact")], objects)
        if len(found) != 1:
            raise UserError(
                f"question {question['question_id']} of scene {questions.get('scene_index')}: {question['question']!r} removes an object "
                f"that {len(found)} of the {len(objects)} objects fit"
            )
        removed += [o for o in found if o not in removed]
    return removed
