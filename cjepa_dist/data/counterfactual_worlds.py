"""The worlds that counterfactual questions ask about: what would have been seen without the object that a question removes.

    question ──removed_objects──> object ──slot_object of truth.npz or match.npz──> slot ──removed of worlds.npz──> world

Only worlds that a question asks about are kept, in the order in which they are asked for, and of these the shown frames. A question that
removes an object that no slot holds has no world: it is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import SHOWN
from cjepa_dist.data.format.dtypes import finite, stored, widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import (
    ANNOTATION,
    MATCH,
    QUESTIONS,
    TRUTH,
    WORLDS,
    ShardReader,
    select_shards,
)
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.errors import UserError

COMMAND = "python -m cjepa_dist.rollout mode=counterfactual world_model=RUN data=DIR out=DIR2 (simulated data: also mode=truth)"


class QuestionWorlds:
    """`slots` (W, F, S, D) in the stored type, F the shown frames; `video` (W,) of each; `asked` (Q,): world of a question, or -1;
    `left_out` (Q,) bool: a counterfactual question without a world. `count`: counterfactual questions at most."""

    def __init__(self, manifest: Manifest, count: int) -> None:
        self.manifest, self.frames = manifest, min(manifest.frames, SHOWN)
        self.room = np.empty(
            (count, self.frames, *manifest.shape[1:]), stored(manifest.dtype)
        )  # not written to, it takes no memory
        self.videos: list[int] = []
        self.of_question: list[int] = []
        self.without: list[bool] = []

    @property
    def slots(self) -> np.ndarray:
        return self.room[: len(self.videos)]

    @property
    def video(self) -> np.ndarray:
        return np.array(self.videos, np.int64)

    @property
    def asked(self) -> np.ndarray:
        return np.array(self.of_question, np.int64)

    @property
    def left_out(self) -> np.ndarray:
        return np.array(self.without, bool)

    def add(self, shard: ShardReader, key: str, video: int) -> None:
        """The worlds of a video, of number `video`.

        Raises UserError, naming shard, scene and question, where there are no worlds, or none without a removed object that a slot holds,
        or where the shard does not say which slot holds what.
        """
        content = shard.json(key, QUESTIONS) or {}
        asked = content.get("questions", ())
        removed = iter(removed_slots_in_shard(shard, key, content))
        archive: WorldArchive | None = None
        places: dict[int, int] = {}  # removed slot -> place in `room`
        for question in asked:
            slot = next(removed) if question["question_type"] == "counterfactual" else None
            self.without.append(slot is None and question["question_type"] == "counterfactual")
            if slot is not None and slot not in places:
                archive = archive or WorldArchive(shard, key, self.manifest)
                places[slot] = len(self.videos)
                name = f"question {question['question_id']} of scene {content.get('scene_index')}"
                self.room[len(self.videos)] = archive.world(slot, name)[: self.frames]
                self.videos.append(video)
            self.of_question.append(-1 if slot is None else places[slot])


def load_question_worlds(folder: str | Path, split: str, count: int) -> QuestionWorlds:
    """The worlds that the questions of a split ask about, of which `count` are counterfactual. Raises UserError as `Worlds.add`."""
    worlds, video = QuestionWorlds(Manifest.load(folder), count), 0
    for entry, keys in select_shards(worlds.manifest, split, 0):
        with ShardReader(folder, split, entry) as shard:
            for key in keys:
                worlds.add(shard, key, video)
                video += 1
    return worlds


def removed_slots_in_shard(
    shard: ShardReader, key: str, content: dict[str, Any]
) -> list[int | None]:
    """`asked_slots` of a video in a shard, of which only what is needed is read."""
    if not any(
        question["question_type"] == "counterfactual" for question in content.get("questions", ())
    ):
        return []
    scene = {
        "scene_index": content.get("scene_index"),
        "object_property": shard.field(key, ANNOTATION, "object_property"),
    }
    truth, match = (shard.arrays(key, member, ("slot_object",)) for member in (TRUTH, MATCH))
    try:
        return asked_slots(
            Sample(key, annotation=scene, questions=content, truth=truth or None, match=match)
        )
    except UserError as error:
        raise UserError(f"shard {shard.path}, {error}") from error


class WorldArchive:
    """worlds.npz of one video."""

    def __init__(self, shard: ShardReader, key: str, manifest: Manifest) -> None:
        self.place = f"shard {shard.path}, key {key}"
        worlds = shard.arrays(key, WORLDS)
        if worlds is None:
            raise UserError(
                f"{self.place} has counterfactual questions and no worlds.npz, which protocol=counterfactual reads: {COMMAND}"
            )
        self.removed, self.slots = worlds["removed"].tolist(), worlds["slots"]
        seen, wanted = (
            (self.slots.shape[1:], self.slots.dtype),
            (manifest.shape, stored(manifest.dtype)),
        )
        if seen != wanted or not finite(self.slots):
            raise UserError(
                f"{self.place}: worlds.npz holds slots {seen[0]} {seen[1]}, {wanted[0]} {wanted[1]} wanted, all finite; {COMMAND}"
            )

    def world(self, slot: int, question: str) -> np.ndarray:
        """(T, S, D): the world without a slot's object, which `question` asks for."""
        if slot not in self.removed:
            raise UserError(
                f"{self.place}: {question} removes slot {slot}, there are worlds without {self.removed}; {COMMAND}"
            )
        return self.slots[self.removed.index(slot)]


WHY = "left out: no slot holds the object that they remove"


def asked_slots(sample: Sample) -> list[int | None]:
    """For each counterfactual question of a video the slot of the object that it removes; None where no slot holds that.

    Raises UserError, naming the key, where the shards do not tell which slot holds which object, or have no questions.
    """
    if sample.questions is None or sample.annotation is None:
        raise UserError(
            f"key {sample.key}: has no questions that could remove an object; take all=true"
        )
    held = slot_of(sample)
    asked = [
        q for q in sample.questions.get("questions", ()) if q["question_type"] == "counterfactual"
    ]
    if not asked or not held:  # so videos without annotations do not need them
        return [None] * len(asked)
    listed = questions.objects(sample.annotation)
    return [
        held.get(*questions.removed_objects({**sample.questions, "questions": [q]}, listed))
        for q in asked
    ]


def removed_slots(sample: Sample, everything: bool) -> list[int]:
    """The slots of the objects that a question of the video removes, or of all its objects; each once. UserError as `asked_slots`."""
    if everything:
        return list(slot_of(sample).values())
    return list(dict.fromkeys(slot for slot in asked_slots(sample) if slot is not None))


def slot_of(sample: Sample) -> dict[int, int]:
    """{object: the slot that holds it}."""
    known = sample.truth if sample.truth is not None else sample.match
    if known is None or "slot_object" not in known:
        raise UserError(
            f"key {sample.key}: neither truth.npz nor match.npz says which slot holds which object; run data_prep.match"
        )
    return {int(o): s for s, o in enumerate(known["slot_object"]) if o >= 0}


def left_out(count: int, of: int) -> str:
    """For people: so many of the counterfactual questions ask about no world."""
    return f"{count} of {of} counterfactual questions {WHY}"


def true_worlds(sample: Sample, removed: list[int]) -> dict[str, np.ndarray]:
    """worlds.npz as the simulator says. Raises UserError where it was not asked for it."""
    truth, advice = (
        sample.truth or {},
        "simulate with counterfactual_splits naming the split, and counterfactuals=all for all=true",
    )
    if "counterfactual_slots" not in truth:
        raise UserError(f"key {sample.key}: its truth holds no counterfactual worlds; {advice}")
    stored = {int(slot): w for w, slot in enumerate(truth["counterfactual_removed"])}
    if missing := [slot for slot in removed if slot not in stored]:
        raise UserError(
            f"key {sample.key}: its truth holds no world without slot {missing[0]}; {advice}"
        )
    assert sample.slots is not None
    worlds = truth["counterfactual_slots"][[stored[slot] for slot in removed]]
    differs = (widen(worlds) != widen(np.concatenate([sample.slots, truth["future_slots"]]))).any(
        axis=-1
    )  # (n, T, S)
    diverged = np.where(differs.any(axis=1), differs.argmax(axis=1), worlds.shape[1])
    diverged[np.arange(len(removed)), removed] = 0
    return {
        "removed": np.array(removed, np.int8),
        "slots": worlds,
        "diverged": diverged.astype(np.int16),
    }
