"""The dataset of the questions of a split that does not fit in memory, or is remote.

    manifest: types of each video's questions ──> samples a shard: ids, length of an epoch
    loaded: shard ──> QuestionDataset of its videos ──get_batch──┐
                      QuestionDataset of another    ──get_batch──┴──concatenate──> batch

Words, labels, slots and worlds of a question are read with its shard. Before that only the number
of questions is known, from the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import select_shards
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.questions import (
    QuestionDataset,
    QuestionReader,
    VideoQuestions,
    no_answers,
)
from cjepa_dist.data.streaming.prefetcher import ShardPrefetcher
from cjepa_dist.data.streaming.shard_sampler import equal_ranges
from cjepa_dist.errors import ContentError, UserError


class StreamingQuestions(ShardPrefetcher[QuestionDataset | VideoQuestions]):
    """The questions of a split, a few shards at a time.

    With `group_by_video` a sample is a video with all of its questions of `question_types`. Ids are
    those of `InMemoryQuestions` and of `VideoQuestions`; `protocol` is as there; `reading` are the
    options of `ShardPrefetcher`. Raises UserError for frames that do not fit in the videos and for
    a split without (such) questions; while reading also for what `InMemoryQuestions` refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        sampling: FrameSampling,
        *,
        protocol: str = "published",
        group_by_video: bool = False,
        question_types: Sequence[str] = QUESTION_TYPES,
        **reading: Any,
    ) -> None:
        self.manifest = Manifest.load(folder)
        sampling.check(folder, self.manifest.frames)
        self.sampling, self.protocol = sampling, protocol
        self.group_by_video, self.question_types = group_by_video, question_types
        entries = list(select_shards(self.manifest, split, 0))
        samples = [self.samples_of(entry.question_types) for entry, _ in entries]
        used = [shard for shard, found in enumerate(samples) if found]
        if not used:
            raise UserError(
                f"split {split!r} of {folder} has no questions of the types "
                f"{', '.join(question_types)}; ALOE needs some"
            )
        counts = [len("".join(entry.question_types)) for entry, _ in entries]
        self.first_question = np.cumsum([0, *counts])[used]
        self.names = [
            entries[shard][1][video] + (f" question {question}" if question >= 0 else "")
            for shard in used
            for video, question in samples[shard]
        ]
        super().__init__(
            folder,
            split,
            [entries[shard] for shard in used],
            [len(samples[shard]) for shard in used],
            **reading,
        )
        self.lacking_world: dict[int, int] = {}  # shard -> its questions without a world
        if not is_remote(folder):
            for number, shard in enumerate(used):
                self.check_first_video(number, samples[shard][0][0])

    def check_first_video(self, number: int, video: int) -> None:
        """Raises UserError where the first questions of a shard have no answers.

        The others are checked when the shard is loaded; this one costs a small read a shard, and
        finds a split without answers before the first step.
        """
        entry, keys = self.entries[number]
        reader = QuestionReader(self.folder, self.split, self.manifest, "published")
        try:
            with ShardReader(self.folder, self.split, entry, retry=self.retry) as shard:
                reader.add(shard, keys[video])
        except ContentError:
            raise
        except UserError:
            return  # it is lost: others may replace it when it is needed
        if not reader.rows.labelled():
            raise ContentError(no_answers(self.folder, f"{self.split} (shard {shard.path})"))

    def samples_of(self, types_of_videos: list[str]) -> list[tuple[int, int]]:
        """(video, question of it) of each sample of a shard; question -1: all of them."""
        if not self.group_by_video:
            return [
                (video, question)
                for video, types in enumerate(types_of_videos)
                for question in range(len(types))
            ]
        return [
            (video, -1)
            for video, types in enumerate(types_of_videos)
            if any(name[0] in types for name in self.question_types)
        ]

    def load_shard(self, shard: ShardReader, number: int) -> QuestionDataset | VideoQuestions:
        keys = self.entries[number][1]
        reader = QuestionReader(self.folder, self.split, self.manifest, self.protocol)
        for key in keys:
            reader.add(shard, key)
        slots = shard.read_videos(keys, self.manifest)
        questions = QuestionDataset(reader.rows, slots, self.sampling, reader.worlds)
        if not questions.labelled:
            raise ContentError(no_answers(self.folder, f"{self.split} (shard {shard.path})"))
        self.lacking_world[number] = int(questions.lacks_world.sum())
        loaded = (
            VideoQuestions(questions, self.question_types) if self.group_by_video else questions
        )
        if len(loaded) != self.sampler.sizes[number]:
            raise UserError(
                f"shard {shard.path} holds {len(loaded)} samples, {self.sampler.sizes[number]} "
                "by its manifest; run data_prep.verify"
            )
        return loaded

    def get_batch(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The samples `ids` that `prepare` returned, as `QuestionDataset.get_batch` lists them."""
        shards, parts, views = self.sampler.shard_of(ids), [], 0
        for begin, end in equal_ranges(shards.tolist()):
            shard = int(shards[begin])
            local_ids = ids[begin:end] - self.sampler.first_id[shard]
            part = self.loaded[shard].result().get_batch(local_ids, sample[begin:end])
            part["row_view"] += views
            part["question"] += int(self.first_question[shard])
            views += len(part["slots"])
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def sample_names(self, ids: np.ndarray) -> list[str]:
        """For messages: key of each video and number of its question, `video_00012 question 3`."""
        return [self.names[i] for i in ids]

    def read_statistics(self) -> dict[str, float]:
        """As `ShardPrefetcher`; questions_without_world: in the shards read so far, if any."""
        lacking = sum(self.lacking_world.values())
        return super().read_statistics() | (
            {"questions_without_world": float(lacking)} if lacking else {}
        )
