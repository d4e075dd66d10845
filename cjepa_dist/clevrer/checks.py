"""Checks questions and annotations: all that training, rollouts and programs would refuse.

    one entry of train.json     ──question_faults────> (number of the question, what is wrong) ...
    one annotation_NNNNN.json   ──annotation_faults──> what is wrong, by field

For importers, which know the files: hours later only a shard and a key are known.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from cjepa_dist.clevrer.questions import removed_objects, scene_objects
from cjepa_dist.clevrer.scene import ATTRIBUTES, SceneObject
from cjepa_dist.clevrer.vocabulary import (
    ANSWER_IDS,
    MAX_CHOICE_WORDS,
    MAX_QUESTION_WORDS,
    QUESTION_TYPES,
    encode_text,
)
from cjepa_dist.errors import UserError

MOST_ID = 1 << 31
MOST_DEPTH = 32  # of lists and mappings in each other
MOST_OBJECTS = 128  # ids are stored as int8
ANSWERS = tuple(answer for answer in ANSWER_IDS if answer != "PAD")


def question_faults(
    content: dict[str, Any], annotation: dict[str, Any] | None = None
) -> list[tuple[int, str]]:
    """Faults of {scene_index, video_filename, questions}: (number of the question, text).

    With a sound annotation also whether counterfactual questions describe one of its objects.
    """
    listed = annotation and annotation.get("object_property")
    objects = scene_objects(annotation) if listed and annotation else None
    faults: list[tuple[int, str]] = []
    seen: set[int] = set()
    for number, question in enumerate(content["questions"]):
        try:
            check_question(question, seen, objects)
        except UserError as error:
            known = isinstance(question, dict) and is_id(question.get("question_id"))
            name = question["question_id"] if known else f"number {number}"
            faults.append((number, f"question {name}: {error}"))
    return faults


def check_question(
    question: Any, seen: set[int], objects: Sequence[SceneObject] | None = None
) -> None:
    """Raises UserError for the first fault of a question; `seen`: ids of those before it."""
    expect(isinstance(question, dict), f"it is {describe(question)}, not a mapping")
    expect(depth_below(question, MOST_DEPTH), f"it is nested more than {MOST_DEPTH} deep")
    check_id(question, "question_id", seen)
    kind = question.get("question_type")
    if kind not in QUESTION_TYPES:
        known = ", ".join(QUESTION_TYPES)
        raise UserError(f"unknown question type {describe(kind)}; CLEVRER has {known}")
    check_text(question, "question", MAX_QUESTION_WORDS)
    check_program(question)
    expect(isinstance(question.get("question_subtype", ""), str), "question_subtype is no text")
    if kind == "descriptive":
        check_answer(question, ANSWERS)
        return
    choices = question.get("choices")
    expect(isinstance(choices, list) and bool(choices), "has no choices")
    ids: set[int] = set()
    for place, choice in enumerate(choices or ()):
        try:
            expect(isinstance(choice, dict), f"it is {describe(choice)}, not a mapping")
            check_id(choice, "choice_id", ids)
            check_text(choice, "choice", MAX_CHOICE_WORDS)
            check_program(choice)
            check_answer(choice, ("correct", "wrong"))
        except UserError as error:
            raise UserError(f"choice {place}: {error}") from None
    if kind == "counterfactual":
        check_removal(question, objects)


def check_removal(question: dict[str, Any], objects: Sequence[SceneObject] | None) -> None:
    """A counterfactual question must say, in its program or its words, what is removed."""
    program = question.get("program")
    if program and "get_counterfact" not in program:
        raise UserError("its program has no get_counterfact, which says what is removed")
    try:
        removed_objects({"questions": [question]}, objects or ())
    except UserError as error:
        # Without an annotation nothing is known about the objects.
        if objects is not None or "removes an object" not in str(error):
            raise UserError(str(error).partition("of scene None: ")[2] or str(error)) from None


def check_id(entry: dict[str, Any], field: str, seen: set[int]) -> None:
    value = entry.get(field)
    expect(is_id(value), f"{field} is {describe(value)}, not a number from 0 on")
    expect(value not in seen, f"{field} {value} occurs twice")
    seen.add(value)  # type: ignore[arg-type]


def is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_ID


def check_text(entry: dict[str, Any], field: str, words: int) -> None:
    text = entry.get(field)
    expect(isinstance(text, str) and bool(text.strip()), f"{field} is {describe(text)}, not a text")
    encode_text(text, words)  # type: ignore[arg-type]


def check_answer(entry: dict[str, Any], known: Collection[str]) -> None:
    answer = entry.get("answer")
    if answer is not None and (not isinstance(answer, str) or answer not in known):
        raise UserError(
            f"unknown answer {describe(answer)}; it must be one of {', '.join(sorted(known))}"
        )


def check_program(entry: dict[str, Any]) -> None:
    program = entry.get("program")
    right = program is None or (
        isinstance(program, list) and all(isinstance(token, str) for token in program)
    )
    expect(right, f"program is {describe(program)}, not a list of texts")


def annotation_faults(annotation: Any, scene: int | None = None) -> list[str]:
    """Faults of CLEVRER's annotation JSON, each naming its field; fields may be absent.

    `scene`: the scene that it must be of.
    """
    if not isinstance(annotation, dict):
        return [f"it is {describe(annotation)}, not a mapping"]
    faults = []
    found = annotation.get("scene_index", scene)
    named = scene is not None or "scene_index" in annotation
    if named and (not is_id(found) or scene not in (None, found)):
        faults.append(f"scene_index is {describe(found)}, not {scene}")
    checked = ("object_property", "motion_trajectory", "collision")
    for field in checked:
        if not isinstance(annotation.get(field) or [], list):
            faults.append(f"{field} is {describe(annotation[field])}, not a list")
    rest = {name: value for name, value in annotation.items() if name not in checked}
    if not depth_below(rest, MOST_DEPTH):
        faults.append(f"it is nested more than {MOST_DEPTH} deep")
    if faults:
        return faults
    ids: set[int] = set()
    properties = annotation.get("object_property") or []
    faults = [
        *each("object_property", properties, lambda entry: object_fault(entry, ids)),
    ]
    known = ids if properties else None
    for field, fault in (("motion_trajectory", motion_fault), ("collision", collision_fault)):
        faults += each(field, annotation.get(field) or [], lambda e, f=fault: f(e, known))  # type: ignore[misc]
    return faults


def each(field: str, entries: list[Any], fault: Callable[[Any], str]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        try:
            text = fault(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            lacks = f"lacks {error}" if isinstance(error, KeyError) else "is not as CLEVRER's"
            text = f" {lacks}"
        if text:
            yield f"{field}[{number}]{text}"


def object_fault(entry: Any, ids: set[int]) -> str:
    number = entry["object_id"]
    if not is_id(number) or number >= MOST_OBJECTS:
        return f".object_id is {describe(number)}, not a number from 0 to {MOST_OBJECTS - 1}"
    if number in ids:
        return f".object_id {number} occurs twice"
    ids.add(number)
    for name, values in ATTRIBUTES.items():
        if entry[name] not in values:
            near = difflib.get_close_matches(str(entry[name]).lower(), values, 1)
            hint = f"; {near[0]!r} is near" if near else ""
            return f".{name} is {describe(entry[name])}, not one of {', '.join(values)}{hint}"
    return ""


def motion_fault(frame: Any, ids: set[int] | None) -> str:
    seen = set()
    for entry in frame["objects"]:
        number, place = entry["object_id"], entry["location"]
        if not is_id(number) or number in seen:
            return f".object_id is {describe(number)}, twice or no number"
        if ids is not None and number not in ids:
            return f".object_id {number} is not in object_property"
        seen.add(number)
        if len(place) < 2 or not all(is_finite(value) for value in place):
            return f": location of object {number} is {describe(place)}, not finite numbers"
        if entry["inside_camera_view"] not in (True, False):
            return f": inside_camera_view of object {number} is neither true nor false"
    return ""


def collision_fault(entry: Any, ids: set[int] | None) -> str:
    pair = entry["object_ids"]
    if not is_id(entry["frame_id"]):
        return f".frame_id is {describe(entry['frame_id'])}, not a number from 0 on"
    if len(pair) != 2 or not all(is_id(number) for number in pair) or pair[0] == pair[1]:
        return f".object_ids is {describe(pair)}, not two objects"
    if ids is not None and not ids.issuperset(pair):
        return f".object_ids {pair} are not all in object_property"
    return ""


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


def depth_below(value: Any, most: int) -> bool:
    """Whether lists and mappings are nested less than `most` deep."""
    level = [value]
    for _ in range(most):
        level = [
            item
            for holder in level
            if isinstance(holder, (dict, list))
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return True
    return False


def describe(value: Any) -> str:
    """A value in a message, shortened."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def expect(right: bool, problem: str) -> None:
    if not right:
        raise UserError(problem)
