"""Questions about a simulated video, as CLEVRER's questions JSON, every answer computed by the program executor.

    History, counterfactual ─> World ─┬─ descriptive.py ─> 11 questions ─┐
                                      └─ choices.py ─> 0-2, 0-1, 0-2 ────┴─> {scene_index, video_filename, questions}

All randomness comes from `rng`: the same history and generator state give the same questions.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from cjepa_dist.clevrer.language import Namer
from cjepa_dist.clevrer.programs import World
from cjepa_dist.clevrer.scene import History
from data_prep.simulate.descriptive import descriptive
from data_prep.simulate.multiple_choice import counterfactual as ask_counterfactual
from data_prep.simulate.multiple_choice import explanatory, predictive


def make_questions(
    history: History,
    counterfactual: Callable[[int], History],
    scene_index: int,
    rng: np.random.Generator,
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
        "questions": [
            {"question_id": number, **question} for number, question in enumerate(questions)
        ],
    }
