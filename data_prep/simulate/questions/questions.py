"""Makes the questions of a simulated video, as CLEVRER's JSON. Programs compute every answer.

    History, counterfactual histories ──> VideoEvents ─┬─ descriptive.py ──────> 11 questions
                                                       └─ multiple_choice.py ──> 0-2, 0-1, 0-2

All randomness comes from `rng`: the same history and generator state give the same questions.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from cjepa_dist.clevrer.descriptions import Describer
from cjepa_dist.clevrer.events import VideoEvents
from cjepa_dist.clevrer.scene import History
from data_prep.simulate.questions.descriptive import descriptive_questions
from data_prep.simulate.questions.multiple_choice import (
    counterfactual_questions,
    explanatory_questions,
    predictive_questions,
)


def make_questions(
    history: History,
    counterfactual: Callable[[int], History],
    scene_index: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """CLEVRER's questions JSON of one video.

    `counterfactual(object_id)` is called at most once for each object. Templates and frequencies
    follow the real questions.
    """
    random = Random(int(rng.integers(1 << 62)))
    video = VideoEvents(history, counterfactual)
    describer = Describer(history.objects, random)
    questions = descriptive_questions(video, describer, random)
    questions += explanatory_questions(video, describer, random)
    questions += predictive_questions(video, describer, random)
    questions += counterfactual_questions(video, describer, random)
    return {
        "scene_index": scene_index,
        "video_filename": f"video_{scene_index:05d}.mp4",
        "questions": [
            {"question_id": number, **question} for number, question in enumerate(questions)
        ],
    }
