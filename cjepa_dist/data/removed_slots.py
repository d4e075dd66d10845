"""Which slots hold the objects that counterfactual questions remove.

question ──removed_objects──> object ──slot_object of truth.npz or match.npz──> slot
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer import questions
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.errors import UserError


def slots_removed_by_questions(sample: Sample) -> list[int | None]:
    """For each counterfactual question of a video, the slot of the object that it removes.

    None where no slot holds that object. Raises UserError, naming the key, if the shards do not
    say which slot holds which object, or have no questions.
    """
    if sample.questions is None or sample.annotation is None:
        raise UserError(
            f"key {sample.key}: has no questions that could remove an object; set all_objects=true"
        )
    slot_of = slots_of_objects(sample)
    counterfactual = [
        q for q in sample.questions.get("questions", ()) if q["question_type"] == "counterfactual"
    ]
    if not counterfactual or not slot_of:  # so videos without annotations do not need them
        return [None] * len(counterfactual)
    objects = questions.scene_objects(sample.annotation)
    return [
        slot_of.get(*questions.removed_objects({**sample.questions, "questions": [q]}, objects))
        for q in counterfactual
    ]


def removed_slots(sample: Sample, all_objects: bool) -> list[int]:
    """The slots of the objects that questions of the video remove, or of all its objects.

    Each slot once. UserError as `slots_removed_by_questions`.
    """
    if all_objects:
        return list(slots_of_objects(sample).values())
    return list(
        dict.fromkeys(slot for slot in slots_removed_by_questions(sample) if slot is not None)
    )


def slot_objects(sample: Sample) -> np.ndarray:
    """(S,) id of the object in each slot, or -1. Raises UserError where the shards do not tell."""
    known = sample.truth if sample.truth is not None else sample.match
    if known is None or "slot_object" not in known:
        raise UserError(
            f"key {sample.key}: neither truth.npz nor match.npz says which slot holds which object;"
            " run data_prep.match"
        )
    return known["slot_object"].astype(int)


def slots_of_objects(sample: Sample) -> dict[int, int]:
    """{object: the slot that holds it}."""
    return {int(o): slot for slot, o in enumerate(slot_objects(sample)) if o >= 0}
