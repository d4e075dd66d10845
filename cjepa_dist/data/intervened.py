"""The worlds that counterfactual questions ask about: what would have been seen without the object that a question removes.

    question ──removed_objects──> object ──slot_object of truth.npz or match.npz──> slot ──removed of worlds.npz──> world

Only worlds that a question asks about are kept, in the order in which they are asked for, and of these the shown frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import SHOWN
from cjepa_dist.data.dtypes import finite, stored
from cjepa_dist.data.shards import ANNOTATION, MATCH, QUESTIONS, TRUTH, WORLDS, Manifest, Shard, take
from cjepa_dist.errors import UserError

COMMAND = "python -m cjepa_dist.rollout mode=counterfactual world_model=RUN data=DIR out=DIR2 (simulated data: also mode=truth)"


@dataclass
class Worlds:
    """`slots` (W, F, S, D) in the stored type, F the shown frames; `video` (W,) of each; `asked` (Q,): world of a question, or -1."""

    slots: np.ndarray
    video: np.ndarray
    asked: np.ndarray


def load_worlds(folder: str | Path, split: str, count: int) -> Worlds:
    """The worlds that the questions of a split ask about, of which `count` are counterfactual; needs memory for one copy.

    Raises UserError, naming shard, scene and question, where there are no worlds, or none without the removed object, or where the shards
    do not say which slot holds it.
    """
    manifest = Manifest.load(folder)
    frames = min(manifest.frames, SHOWN)
    slots = np.empty((count, frames, *manifest.shape[1:]), stored(manifest.dtype))  # memory that is not written to is not taken
    videos: list[int] = []
    asked: list[int] = []
    video = -1
    for entry, keys in take(manifest, split, 0):
        with Shard(folder, split, entry) as shard:
            for key in keys:
                video += 1
                content = shard.json(key, QUESTIONS) or {}
                reader: Reader | None = None
                world: dict[int, int] = {}  # removed slot -> place in `slots`
                for question in content.get("questions", ()):
                    if question["question_type"] != "counterfactual":
                        asked.append(-1)
                        continue
                    reader = reader or Reader(shard, key, content, manifest)
                    slot = reader.removed_slot(question)
                    if slot not in world:
                        world[slot] = len(videos)
                        slots[len(videos)] = reader.world(slot, question)[:frames]
                        videos.append(video)
                    asked.append(world[slot])
    return Worlds(slots[: len(videos)], np.array(videos, np.int64), np.array(asked, np.int64))


class Reader:
    """What one video has on its counterfactual questions."""

    def __init__(self, shard: Shard, key: str, content: dict[str, Any], manifest: Manifest) -> None:
        self.content, self.manifest, self.place = content, manifest, f"shard {shard.path}, key {key}"
        listed = shard.field(key, ANNOTATION, "object_property")
        self.objects = questions.objects({"scene_index": content.get("scene_index"), "object_property": listed})
        known = shard.arrays(key, TRUTH, ("slot_object",)) or shard.arrays(key, MATCH, ("slot_object",))
        if not known:
            raise UserError(f"{self.place}: neither truth.npz nor match.npz says which slot holds which object; run data_prep.match")
        self.slot_of = {int(o): s for s, o in enumerate(known["slot_object"]) if o >= 0}
        worlds = shard.arrays(key, WORLDS)
        if worlds is None:
            raise UserError(f"{self.place} has counterfactual questions and no worlds.npz, which protocol=counterfactual reads: {COMMAND}")
        self.removed, self.slots = worlds["removed"].tolist(), worlds["slots"]
        seen, wanted = (self.slots.shape[1:], self.slots.dtype), (manifest.shape, stored(manifest.dtype))
        if seen != wanted or not finite(self.slots):
            raise UserError(
                f"{self.place}: worlds.npz holds slots {seen[0]} {seen[1]}, {wanted[0]} {wanted[1]} wanted, all finite; {COMMAND}"
            )

    def removed_slot(self, question: dict[str, Any]) -> int:
        """The slot of the object that a question removes."""
        (removed,) = questions.removed_objects({**self.content, "questions": [question]}, self.objects)
        if removed not in self.slot_of:
            raise UserError(f"{self.place}: {self.name(question)} removes object {removed}, which no slot holds")
        return self.slot_of[removed]

    def world(self, slot: int, question: dict[str, Any]) -> np.ndarray:
        """(T, S, D): the world without a slot's object."""
        if slot not in self.removed:
            raise UserError(f"{self.place}: {self.name(question)} removes slot {slot}, there are worlds without {self.removed}; {COMMAND}")
        return self.slots[self.removed.index(slot)]

    def name(self, question: dict[str, Any]) -> str:
        return f"question {question['question_id']} of scene {self.content.get('scene_index')}"
