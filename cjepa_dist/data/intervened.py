"""The worlds that counterfactual questions ask about: what would have been seen without the object that a question removes.

    question ──removed_objects──> object ──slot_object of truth.npz or match.npz──> slot ──removed of worlds.npz──> world

Only worlds that a question asks about are kept, in the order in which they are asked for, and of these the shown frames. A question that
removes an object that no slot holds has no world: it is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.clevrer.scene import SHOWN
from cjepa_dist.data.dtypes import finite, stored
from cjepa_dist.data.shards import ANNOTATION, MATCH, QUESTIONS, TRUTH, WORLDS, Manifest, Sample, Shard, take
from cjepa_dist.data.worlds import asked_slots
from cjepa_dist.errors import UserError

COMMAND = "python -m cjepa_dist.rollout mode=counterfactual world_model=RUN data=DIR out=DIR2 (simulated data: also mode=truth)"


class Worlds:
    """`slots` (W, F, S, D) in the stored type, F the shown frames; `video` (W,) of each; `asked` (Q,): world of a question, or -1;
    `left_out` (Q,) bool: a counterfactual question without a world. `count`: counterfactual questions at most."""

    def __init__(self, manifest: Manifest, count: int) -> None:
        self.manifest, self.frames = manifest, min(manifest.frames, SHOWN)
        self.room = np.empty((count, self.frames, *manifest.shape[1:]), stored(manifest.dtype))  # not written to, it takes no memory
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

    def add(self, shard: Shard, key: str, video: int) -> None:
        """The worlds of a video, of number `video`.

        Raises UserError, naming shard, scene and question, where there are no worlds, or none without a removed object that a slot holds,
        or where the shard does not say which slot holds what.
        """
        content = shard.json(key, QUESTIONS) or {}
        asked = content.get("questions", ())
        removed = iter(removed_slots(shard, key, content))
        archive: Archive | None = None
        places: dict[int, int] = {}  # removed slot -> place in `room`
        for question in asked:
            slot = next(removed) if question["question_type"] == "counterfactual" else None
            self.without.append(slot is None and question["question_type"] == "counterfactual")
            if slot is not None and slot not in places:
                archive = archive or Archive(shard, key, self.manifest)
                places[slot] = len(self.videos)
                name = f"question {question['question_id']} of scene {content.get('scene_index')}"
                self.room[len(self.videos)] = archive.world(slot, name)[: self.frames]
                self.videos.append(video)
            self.of_question.append(-1 if slot is None else places[slot])


def load_worlds(folder: str | Path, split: str, count: int) -> Worlds:
    """The worlds that the questions of a split ask about, of which `count` are counterfactual. Raises UserError as `Worlds.add`."""
    worlds, video = Worlds(Manifest.load(folder), count), 0
    for entry, keys in take(worlds.manifest, split, 0):
        with Shard(folder, split, entry) as shard:
            for key in keys:
                worlds.add(shard, key, video)
                video += 1
    return worlds


def removed_slots(shard: Shard, key: str, content: dict[str, Any]) -> list[int | None]:
    """`asked_slots` of a video in a shard, of which only what is needed is read."""
    if not any(question["question_type"] == "counterfactual" for question in content.get("questions", ())):
        return []
    scene = {"scene_index": content.get("scene_index"), "object_property": shard.field(key, ANNOTATION, "object_property")}
    truth, match = (shard.arrays(key, member, ("slot_object",)) for member in (TRUTH, MATCH))
    try:
        return asked_slots(Sample(key, annotation=scene, questions=content, truth=truth or None, match=match))
    except UserError as error:
        raise UserError(f"shard {shard.path}, {error}") from error


class Archive:
    """worlds.npz of one video."""

    def __init__(self, shard: Shard, key: str, manifest: Manifest) -> None:
        self.place = f"shard {shard.path}, key {key}"
        worlds = shard.arrays(key, WORLDS)
        if worlds is None:
            raise UserError(f"{self.place} has counterfactual questions and no worlds.npz, which protocol=counterfactual reads: {COMMAND}")
        self.removed, self.slots = worlds["removed"].tolist(), worlds["slots"]
        seen, wanted = (self.slots.shape[1:], self.slots.dtype), (manifest.shape, stored(manifest.dtype))
        if seen != wanted or not finite(self.slots):
            raise UserError(
                f"{self.place}: worlds.npz holds slots {seen[0]} {seen[1]}, {wanted[0]} {wanted[1]} wanted, all finite; {COMMAND}"
            )

    def world(self, slot: int, question: str) -> np.ndarray:
        """(T, S, D): the world without a slot's object, which `question` asks for."""
        if slot not in self.removed:
            raise UserError(f"{self.place}: {question} removes slot {slot}, there are worlds without {self.removed}; {COMMAND}")
        return self.slots[self.removed.index(slot)]
