"""Worlds without an object: which slots a video's questions remove, and what the simulator says happens then.

questions, annotation ──removed_objects──> ids ──slot_object of truth.npz or match.npz──> slots, or none: left out
truth.npz: counterfactual_slots ──true_worlds──> the arrays of worlds.npz
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer import questions
from cjepa_dist.data.dtypes import widen
from cjepa_dist.data.shards import Sample
from cjepa_dist.errors import UserError

WHY = "left out: no slot holds the object that they remove"


def asked_slots(sample: Sample) -> list[int | None]:
    """For each counterfactual question of a video the slot of the object that it removes; None where no slot holds that.

    Raises UserError, naming the key, where the shards do not tell which slot holds which object, or have no questions.
    """
    if sample.questions is None or sample.annotation is None:
        raise UserError(f"key {sample.key}: has no questions that could remove an object; take all=true")
    held = slot_of(sample)
    asked = [q for q in sample.questions.get("questions", ()) if q["question_type"] == "counterfactual"]
    if not asked or not held:  # so videos without annotations do not need them
        return [None] * len(asked)
    listed = questions.objects(sample.annotation)
    return [held.get(*questions.removed_objects({**sample.questions, "questions": [q]}, listed)) for q in asked]


def removed_slots(sample: Sample, everything: bool) -> list[int]:
    """The slots of the objects that a question of the video removes, or of all its objects; each once. UserError as `asked_slots`."""
    if everything:
        return list(slot_of(sample).values())
    return list(dict.fromkeys(slot for slot in asked_slots(sample) if slot is not None))


def slot_of(sample: Sample) -> dict[int, int]:
    """{object: the slot that holds it}."""
    known = sample.truth if sample.truth is not None else sample.match
    if known is None or "slot_object" not in known:
        raise UserError(f"key {sample.key}: neither truth.npz nor match.npz says which slot holds which object; run data_prep.match")
    return {int(o): s for s, o in enumerate(known["slot_object"]) if o >= 0}


def left_out(count: int, of: int) -> str:
    """For people: so many of the counterfactual questions ask about no world."""
    return f"{count} of {of} counterfactual questions {WHY}"


def true_worlds(sample: Sample, removed: list[int]) -> dict[str, np.ndarray]:
    """worlds.npz as the simulator says. Raises UserError where it was not asked for it."""
    truth, advice = sample.truth or {}, "simulate with counterfactual_splits naming the split, and counterfactuals=all for all=true"
    if "counterfactual_slots" not in truth:
        raise UserError(f"key {sample.key}: its truth holds no counterfactual worlds; {advice}")
    stored = {int(slot): w for w, slot in enumerate(truth["counterfactual_removed"])}
    if missing := [slot for slot in removed if slot not in stored]:
        raise UserError(f"key {sample.key}: its truth holds no world without slot {missing[0]}; {advice}")
    assert sample.slots is not None
    worlds = truth["counterfactual_slots"][[stored[slot] for slot in removed]]
    differs = (widen(worlds) != widen(np.concatenate([sample.slots, truth["future_slots"]]))).any(axis=-1)  # (n, T, S)
    diverged = np.where(differs.any(axis=1), differs.argmax(axis=1), worlds.shape[1])
    diverged[np.arange(len(removed)), removed] = 0
    return {"removed": np.array(removed, np.int8), "slots": worlds, "diverged": diverged.astype(np.int16)}
