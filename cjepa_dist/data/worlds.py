"""Worlds without an object: which slots a video's questions remove, and what the simulator says happens then.

questions, annotation ──removed_objects──> ids ──slot_object of truth.npz or match.npz──> slots
truth.npz: counterfactual_slots ──true_worlds──> the arrays of worlds.npz
"""

from __future__ import annotations

import numpy as np

from cjepa_dist.clevrer import questions
from cjepa_dist.data.dtypes import widen
from cjepa_dist.data.shards import Sample
from cjepa_dist.errors import UserError


def removed_slots(sample: Sample, everything: bool) -> list[int]:
    """The slots of the objects that a question of the video removes, or of all its objects. An object that no slot holds has no world.

    Raises UserError, naming the key, where the shards do not tell which slot holds which object, or have no questions.
    """
    known = sample.truth if sample.truth is not None else sample.match
    if known is None or "slot_object" not in known:
        raise UserError(f"key {sample.key}: neither truth.npz nor match.npz says which slot holds which object; run data_prep.match")
    slot_of = {int(o): s for s, o in enumerate(known["slot_object"]) if o >= 0}
    if everything:
        return list(slot_of.values())
    if sample.questions is None or sample.annotation is None:
        raise UserError(f"key {sample.key}: has no questions that could remove an object; take all=true")
    asked = questions.removed_objects(sample.questions, questions.objects(sample.annotation))
    return [slot_of[o] for o in asked if o in slot_of]


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
