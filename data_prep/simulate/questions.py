"""Questions about a simulated video, as CLEVRER's questions JSON, every answer computed by the program executor.

    History, counterfactual ─> World ─┬─ descriptive.py ─> 11 questions ─┐
                                      └─ choices.py ─> 0-2, 0-1, 0-2 ────┴─> {scene_index, video_filename, questions}

All randomness comes from `rng`: the same history and generator state give the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np

from cjepa_dist.clevrer.language import Namer, described
from cjepa_dist.clevrer.programs import World
from cjepa_dist.clevrer.scene import History, SceneObject
from cjepa_dist.errors import UserError
from data_prep.simulate.choices import counterfactual as ask_counterfactual
from data_prep.simulate.choices import explanatory, predictive
from data_prep.simulate.descriptive import descriptive


def make_questions(
    history: History, counterfactual: Callable[[int], History], scene_index: int, rng: np.random.Generator
) -> dict[str, Any]:
    """CLEVRER's questions JSON of one video.

    `counterfactual(object_id)` is called once for each object at most. Source: spec/clevrer.md (forms, frequencies, semantics).
    """
    random = Random(int(rng.integers(1 << 62)))
    world = World(history, counterfactual)
    namer = Namer(history.objects, random)
    questions = descriptive(world, namer, random)
    questions += explanatory(world, namer, random)
    questions += predictive(world, namer, random)
    questions += ask_counterfactual(world, namer, random)
    return {
        "scene_index": scene_index,
        "video_filename": f"video_{scene_index:05d}.mp4",
        "questions": [{"question_id": number, **question} for number, question in enumerate(questions)],
    }


def removed_objects(questions: dict[str, Any], objects: Sequence[SceneObject]) -> list[int]:
    """Ids of the objects that the counterfactual questions of a video remove, each once, in the order of the questions.

    Raises UserError if a description does not fit exactly one of `objects`.
    """
    removed: list[int] = []
    for question in questions["questions"]:
        program = question.get("program", ())
        if "get_counterfact" not in program:
            continue
        found = described(program[: program.index("get_counterfact")], objects)
        if len(found) != 1:
            raise UserError(
                f"question {question['question_id']} of scene {questions.get('scene_index')}: {question['question']!r} removes an object "
                f"that {len(found)} of the {len(objects)} objects fit"
            )
        removed += [o for o in found if o not in removed]
    return removed
