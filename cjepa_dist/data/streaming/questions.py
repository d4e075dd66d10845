"""Questions about a split that does not fit in memory, or is elsewhere (`blocks.py`).

    manifest: types of each video's questions ──> samples a shard, so ids and the length of an epoch
    held: shard ──> Questions of its videos ──gather──┐
                    Questions of another      ──gather┴──joined──> batch, as `Questions.gather`

Words, labels, slots and worlds of a question come with its shard, when its turn comes: only how many questions there are is known before,
from the manifest. One that does not say it (an older data set) costs reading the questions of all shards once: over a network, the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import TYPES
from cjepa_dist.data.counterfactual_worlds import QuestionWorlds
from cjepa_dist.data.format.manifest import Manifest, ShardEntry, initials
from cjepa_dist.data.format.reader import QUESTIONS, ShardReader, select_shards
from cjepa_dist.data.format.storage import DEFAULT_RETRY, RetryPolicy, is_remote
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.question_encoding import EncodedQuestions
from cjepa_dist.data.questions import QuestionBatches, VideoQuestions, scene_of
from cjepa_dist.data.streaming.prefetcher import ShardPrefetcher
from cjepa_dist.data.streaming.shard_sampler import stretches
from cjepa_dist.errors import UserError


class StreamingQuestions(ShardPrefetcher[QuestionBatches | VideoQuestions]):
    """The questions of a split, or with `by_video` its videos with all of their questions of `types`, a few shards at a time.

    Ids are those of `QuestionSource` and of `VideoQuestions`. `protocol` is as there; `reading` as of `Blocks`. Raises UserError for frames
    that do not fit in the videos, and a split without (such) questions; while reading also for what `QuestionSource` refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        shown: FrameSampling,
        *,
        protocol: str = "published",
        by_video: bool = False,
        types: Sequence[str] = TYPES,
        **reading: Any,
    ) -> None:
        self.manifest = Manifest.load(folder)
        shown.check(folder, self.manifest.frames)
        self.shown, self.protocol, self.by_video, self.types = shown, protocol, by_video, types
        entries = list(select_shards(self.manifest, split, 0))
        if any(entry.asked is None for entry, _ in entries):
            how = (
                "fetches the whole split once" if is_remote(folder) else "reads all questions once"
            )
            print(
                f"the manifest of {folder} does not count the questions of every shard: this {how}",
                flush=True,
            )
        patience = reading.get("patience", DEFAULT_RETRY)
        asked = [
            counted(folder, split, entry, patience) if entry.asked is None else entry.asked
            for entry, _ in entries
        ]
        places = [self.places(videos) for videos in asked]
        used = [shard for shard, found in enumerate(places) if len(found)]
        if not used:
            raise UserError(
                f"split {split!r} of {folder} has no questions of the types {', '.join(types)}; ALOE needs some"
            )
        first = np.cumsum([0, *(len("".join(videos)) for videos in asked)])
        self.first_question = first[used]
        # Of each sample, for people: the key of its video and, unless it is all of them, which of its questions.
        self.sample_names = [
            entries[shard][1][video] + (f" question {question}" if question >= 0 else "")
            for shard in used
            for video, question in places[shard]
        ]
        super().__init__(
            folder,
            split,
            [entries[shard] for shard in used],
            [len(places[shard]) for shard in used],
            **reading,
        )
        self.left_out: dict[int, int] = {}

    def places(self, asked: list[str]) -> list[tuple[int, int]]:
        """(video, question of it) of each sample of a shard; question -1: all of them."""
        if not self.by_video:
            return [
                (video, question)
                for video, types in enumerate(asked)
                for question in range(len(types))
            ]
        return [
            (video, -1)
            for video, types in enumerate(asked)
            if any(name[0] in types for name in self.types)
        ]

    def hold(self, content: ShardReader, number: int) -> QuestionBatches | VideoQuestions:
        keys = self.entries[number][1]
        rows = EncodedQuestions(str(self.folder), self.split)
        for video, key in enumerate(keys):
            rows.add(video, content.json(key, QUESTIONS), scene_of(key))
        worlds = None
        if self.protocol == "counterfactual":
            worlds = QuestionWorlds(self.manifest, rows.type.count("counterfactual"))
            for video, key in enumerate(keys):
                worlds.add(content, key, video)
        questions = QuestionBatches(rows, content.stack(keys, self.manifest), self.shown, worlds)
        self.left_out[number] = int(questions.left_out.sum())
        held = VideoQuestions(questions, self.types) if self.by_video else questions
        if len(held) != self.lanes.sizes[number]:
            raise UserError(
                f"shard {content.path} holds {len(held)} samples, {self.lanes.sizes[number]} by its manifest; run data_prep.verify"
            )
        return held

    def gather(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The samples `ids`, as `ready` gave them; keys as of `Questions.gather`."""
        shards, parts, views = self.lanes.shard(ids), [], 0
        for begin, end in stretches(shards.tolist()):
            shard = int(shards[begin])
            part = (
                self.held[shard]
                .result()
                .gather(ids[begin:end] - self.lanes.first[shard], sample[begin:end])
            )
            part["row_view"] += views
            part["question"] += int(self.first_question[shard])
            views += len(part["slots"])
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def names(self, ids: np.ndarray) -> list[str]:
        """For people: the key of each video and which of its questions, `video_00012 question 3`."""
        return [self.sample_names[i] for i in ids]

    def counts(self) -> dict[str, float]:
        """As of `Blocks`; left_out_questions: those without a world, in the shards that this process has read, where there are any."""
        left_out = sum(self.left_out.values())
        return super().counts() | ({"left_out_questions": float(left_out)} if left_out else {})


def counted(folder: str | Path, split: str, entry: ShardEntry, patience: RetryPolicy) -> list[str]:
    """What `ShardEntry.asked` says, for an entry that does not say it."""
    with ShardReader(folder, split, entry, patience=patience) as shard:
        return [initials(shard.json(key, QUESTIONS)) for key in entry.keys]
