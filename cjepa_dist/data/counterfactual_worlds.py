"""The counterfactual worlds of questions: what would be seen without the object they remove.

    question ──removed_slots.py──> slot ──removed of worlds.npz──> world (T, S, D)

Only worlds that a question asks about are kept, in the order of the questions, and of these the
frames of the video. A question that removes an object that no slot holds has no world; it is
excluded from evaluation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.data.format.dtypes import all_finite, storage_dtype, to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.sample import ANNOTATION, MATCH, TRUTH, WORLDS, Sample
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.removed_slots import slots_removed_by_questions
from cjepa_dist.errors import UserError

HOW_TO_MAKE = (
    "python -m cjepa_dist.rollout mode=counterfactual world_model=RUN data=DIR out=DIR2 "
    "(simulated data: also mode=truth)"
)
EXCLUSION_REASON = "excluded: no slot holds the object that they remove"


class QuestionWorlds:
    """The worlds that the questions of videos ask about, W of them for Q questions."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.frames = manifest, min(manifest.frames, VIDEO_FRAMES)
        shape = (0, self.frames, *manifest.shape[1:])
        self._slots = np.empty(shape, storage_dtype(manifest.dtype))
        self._video: list[int] = []
        self._world_of_question: list[int] = []
        self._lacks_world: list[bool] = []

    @property
    def slots(self) -> np.ndarray:
        """(W, F, S, D) in the stored type, F the frames of the video."""
        return self._slots

    @property
    def video(self) -> np.ndarray:
        """(W,): the video of each world."""
        return np.array(self._video, np.int64)

    @property
    def world_of_question(self) -> np.ndarray:
        """(Q,): the world of each question; -1 for none."""
        return np.array(self._world_of_question, np.int64)

    @property
    def lacks_world(self) -> np.ndarray:
        """(Q,) bool: a counterfactual question without a world."""
        return np.array(self._lacks_world, bool)

    def add(self, shard: ShardReader, key: str, content: dict[str, Any], video: int) -> None:
        """Add the worlds of a video, of number `video`; `content`: its questions.json.

        Raises UserError, naming shard, scene and question, if there are no worlds, or none without
        a removed object that a slot holds, or if the shard does not say which slot holds what.
        """
        removed = iter(read_removed_slots(shard, key, content))
        archive: WorldArchive | None = None
        world_without: dict[int, int] = {}  # removed slot -> number of its world
        worlds: list[np.ndarray] = []
        for question in content.get("questions", ()):
            counterfactual = question["question_type"] == "counterfactual"
            slot = next(removed) if counterfactual else None
            self._lacks_world.append(slot is None and counterfactual)
            if slot is not None and slot not in world_without:
                archive = archive or WorldArchive(shard, key, self.manifest)
                world_without[slot] = len(self._video)
                name = f"question {question['question_id']} of scene {content.get('scene_index')}"
                worlds.append(archive.world(slot, name)[: self.frames])
                self._video.append(video)
            self._world_of_question.append(-1 if slot is None else world_without[slot])
        self._append(worlds)

    def _append(self, worlds: list[np.ndarray]) -> None:
        # In place, without a copy of what is there: at the end of a split that would be gigabytes.
        count = len(self._slots)
        self._slots.resize((count + len(worlds), *self._slots.shape[1:]), refcheck=False)
        for number, world in enumerate(worlds, count):
            self._slots[number] = world


def read_removed_slots(shard: ShardReader, key: str, content: dict[str, Any]) -> list[int | None]:
    """`slots_removed_by_questions` of a video in a shard, reading only what it needs.

    `content`: the questions of the video.
    """
    if not any(
        question["question_type"] == "counterfactual" for question in content.get("questions", ())
    ):
        return []
    annotation = {
        "scene_index": content.get("scene_index"),
        "object_property": shard.read_json_field(key, ANNOTATION, "object_property"),
    }
    truth, match = (shard.read_arrays(key, member, ("slot_object",)) for member in (TRUTH, MATCH))
    try:
        return slots_removed_by_questions(
            Sample(key, annotation=annotation, questions=content, truth=truth or None, match=match)
        )
    except UserError as error:
        raise UserError(f"shard {shard.path}, {error}") from error


class WorldArchive:
    """worlds.npz of one video."""

    def __init__(self, shard: ShardReader, key: str, manifest: Manifest) -> None:
        self.place = f"shard {shard.path}, key {key}"
        worlds = shard.read_arrays(key, WORLDS)
        if worlds is None:
            raise UserError(
                f"{self.place} has counterfactual questions and no worlds.npz, which "
                f"protocol=counterfactual reads: {HOW_TO_MAKE}"
            )
        self.removed, self.slots = worlds["removed"].tolist(), worlds["slots"]
        found = self.slots.shape[1:], self.slots.dtype
        expected = manifest.shape, storage_dtype(manifest.dtype)
        if found != expected or not all_finite(self.slots):
            raise UserError(
                f"{self.place}: worlds.npz holds slots {found[0]} {found[1]}, "
                f"{expected[0]} {expected[1]} expected, all finite; {HOW_TO_MAKE}"
            )

    def world(self, slot: int, question: str) -> np.ndarray:
        """(T, S, D): the world without a slot's object, which `question` asks for."""
        if slot not in self.removed:
            raise UserError(
                f"{self.place}: {question} removes slot {slot}, there are worlds without "
                f"{self.removed}; {HOW_TO_MAKE}"
            )
        return self.slots[self.removed.index(slot)]


def describe_missing_worlds(count: int, total: int) -> str:
    """For messages: `count` of `total` counterfactual questions have no world."""
    return f"{count} of {total} counterfactual questions {EXCLUSION_REASON}"


def simulated_worlds(sample: Sample, removed: list[int]) -> dict[str, np.ndarray]:
    """The arrays of worlds.npz from the simulator's ground truth.

    Raises UserError if the simulator did not write the worlds without the slots `removed`.
    """
    truth = sample.truth or {}
    advice = (
        "simulate with counterfactual_splits naming the split, and counterfactuals=all for "
        "all_objects=true"
    )
    if "counterfactual_slots" not in truth:
        raise UserError(f"key {sample.key}: its truth holds no counterfactual worlds; {advice}")
    world_without = {int(slot): w for w, slot in enumerate(truth["counterfactual_removed"])}
    if missing := [slot for slot in removed if slot not in world_without]:
        raise UserError(
            f"key {sample.key}: its truth holds no world without slot {missing[0]}; {advice}"
        )
    assert sample.slots is not None
    worlds = truth["counterfactual_slots"][[world_without[slot] for slot in removed]]
    factual = to_float32(np.concatenate([sample.slots, truth["future_slots"]]))
    differs = (to_float32(worlds) != factual).any(axis=-1)  # (n, T, S)
    diverged = np.where(differs.any(axis=1), differs.argmax(axis=1), worlds.shape[1])
    diverged[np.arange(len(removed)), removed] = 0
    return {
        "removed": np.array(removed, np.int8),
        "slots": worlds,
        "diverged": diverged.astype(np.int16),
    }
