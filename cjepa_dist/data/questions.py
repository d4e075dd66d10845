"""Datasets of CLEVRER questions about the videos of a split that fits in memory, for ALOE.

    questions.json ──encode──> rows of 32 words ───────────────┐
    slots (V, T, S, D), stored type, one copy a node ──frames──┼──get_batch(ids, sample)──> batch
    worlds without an object (W, 128, S, D) ──frames───────────┘  (protocol=counterfactual)

A sample is a question with all its choices. A descriptive question is one row, a multiple-choice
question one row a choice, and the rows of a question are adjacent. As in SlotFormer and C-JEPA a
question sees the frames `start + stride * arange(frames)`; a predictive question T - 128 later, so
that it sees the end of the rollout. With `protocol="counterfactual"` a counterfactual question
sees the same frames of the world that it asks about (`counterfactual_worlds.py`); published
systems show it the video, with the object in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.clevrer.vocabulary import MAX_TEXT_WORDS, QUESTION_TYPES
from cjepa_dist.data.counterfactual_worlds import QuestionWorlds
from cjepa_dist.data.dataset import InMemoryDataset
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, open_videos
from cjepa_dist.data.format.sample import QUESTIONS, scene_index
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.question_encoding import EncodedQuestions, remove_negation
from cjepa_dist.data.shuffled_videos import other_videos, other_worlds
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import hash_array


class QuestionDataset(InMemoryDataset):
    """Questions about videos that are in memory; `len()` counts questions.

    Numpy arrays of each question (Q,): `type` and `subtype` str (subtype "" for choices), `scene`,
    `question_id` and `video` int64, `is_choice` bool; `lacks_world` bool: a counterfactual question
    without a world, which sees the video and has no label.

    Of each row (R,), int64: `choice_id`, -1 for a descriptive question; `row_question`; `label`:
    the answer's id, or 1/0 for a choice, or -1 where the answer is not public.

    `labelled`: every question has its answer.
    """

    def __init__(
        self,
        rows: EncodedQuestions,
        slots: np.ndarray,
        sampling: FrameSampling,
        worlds: QuestionWorlds | None = None,
        blind: bool = False,
    ) -> None:
        """`slots` (V, T, S, D) as stored; with `worlds` counterfactual questions see these.

        `blind` shows each question the slots of another video, or a world of another video.
        UserError if some questions have an answer and others have none, and for `blind` with a
        single video.
        """
        self.sampling, self.slots = sampling, slots
        self.predictive_shift = max(0, slots.shape[1] - VIDEO_FRAMES)
        self.type, self.subtype = np.array(rows.type), np.array(rows.subtype)
        self.scene = np.array(rows.scene, np.int64)
        self.question_id = np.array(rows.question_id, np.int64)
        self.video = np.array(rows.video, np.int64)
        self.first_row = np.array([*rows.first_row, len(rows.label)], np.int64)
        self.choice_id = np.array(rows.choice_id, np.int64)
        self.label = np.array(rows.label, np.int64)
        self.row_question = np.repeat(np.arange(len(self)), np.diff(self.first_row))
        self.words = np.frombuffer(bytes(rows.words), np.uint8).reshape(-1, MAX_TEXT_WORDS)
        self.labelled = rows.labelled()
        self.is_choice = self.type != "descriptive"
        self.type_index = np.array([QUESTION_TYPES.index(name) for name in rows.type], np.int64)
        # What a question sees: the number of a video, or len(slots) + the number of a world.
        self.visible = other_videos(len(slots), sampling.seed)[self.video] if blind else self.video
        self.worlds, self.lacks_world = slots[:0], np.zeros(len(self), bool)
        if worlds is not None:
            self.worlds, self.lacks_world = worlds.slots, worlds.lacks_world
            own = worlds.world_of_question
            world = own
            if blind and len(worlds.video):
                world = other_worlds(worlds.video, sampling.seed)[own]
            self.visible = np.where(own < 0, self.visible, len(slots) + world)
        self.label[self.lacks_world[self.row_question]] = -1
        self.unnegated = remove_negation(self.words, self.label)

    def __len__(self) -> int:
        return len(self.type)

    def sample_names(self, ids: Any) -> list[str]:
        """For messages: scene and question id of each question, `scene 10012 question 3`."""
        return [f"scene {self.scene[i]} question {self.question_id[i]}" for i in ids]

    def rows(self, question: int) -> np.ndarray:
        """The row numbers of a question, (choices,) or (1,)."""
        return np.arange(self.first_row[question], self.first_row[question + 1])

    def get_batch(self, ids: Any, sample: Any) -> dict[str, torch.Tensor]:
        """The questions `ids` (Q,) as a batch of U views of videos and R rows of words.

        - slots (U, F, S, D) float32: each pair of video or world and first frame (and order of
          slots) once
        - tokens (R, 32) int64; padding (R, 32) bool, True at padding
        - is_choice (R,) bool; kind (R,) int64: an index into QUESTION_TYPES; label (R,) int64
        - row_view (R,) int64: an index into slots
        - question, sample (Q,) int64: `ids`, and the index of each sample in the run, which is the
          key of its random draws
        """
        ids, sample = np.asarray(ids, np.int64), np.asarray(sample, np.int64)
        begin, count = self.first_row[ids], np.diff(self.first_row)[ids]
        row_question = np.repeat(np.arange(len(ids)), count)
        rows = np.arange(len(row_question)) + np.repeat(begin - (np.cumsum(count) - count), count)
        shift = np.where(self.type[ids] == "predictive", self.predictive_shift, 0)
        start = self.sampling.start(sample) + shift
        slot_order = sample if self.sampling.shuffle else 0 * sample
        keys = np.stack([self.visible[ids], start, slot_order], axis=1)
        views, question_view = np.unique(keys, axis=0, return_inverse=True)
        frames = views[:, 1:2] + self.sampling.stride * np.arange(self.sampling.frames)
        slots = self.read_frames(views[:, 0], frames)
        if self.sampling.shuffle:
            count_slots = self.slots.shape[2]
            draws = hash_array(
                views[:, 2:] * count_slots + np.arange(count_slots), self.sampling.seed + 1
            )
            slots = np.take_along_axis(slots, draws.argsort(axis=1)[:, None, :, None], axis=2)
        words, label = self.words[rows], self.label[rows]
        if (plain := sample[row_question] < self.sampling.unnegated_until).any():
            words[plain], label[plain] = (part[rows[plain]] for part in self.unnegated)
        words = words.astype(np.int64)
        batch = {
            "slots": to_float32(slots),
            "tokens": words,
            "padding": words == 0,
            "is_choice": self.is_choice[self.row_question[rows]],
            "kind": self.type_index[self.row_question[rows]],
            "row_view": question_view.reshape(-1)[row_question],
            "label": label,
            "question": ids,
            "sample": sample,
        }
        return {
            name: torch.from_numpy(array.copy() if name in ("question", "sample") else array)
            for name, array in batch.items()
        }

    def read_frames(self, visible: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Frames (U, F) of videos or worlds (U,), numbered as in `self.visible`.

        Returns (U, F, S, D) in the stored type.
        """
        observed = visible < len(self.slots)
        if observed.all():
            return self.slots[visible[:, None], frames]
        slots = np.empty((*frames.shape, *self.slots.shape[2:]), self.slots.dtype)
        slots[observed] = self.slots[visible[observed, None], frames[observed]]
        world = visible[~observed, None] - len(self.slots)
        slots[~observed] = self.worlds[world, frames[~observed]]
        return slots


class QuestionReader:
    """Reads the questions of videos, and the worlds that `protocol` shows them, from shards."""

    def __init__(self, folder: str | Path, split: str, manifest: Manifest, protocol: str) -> None:
        self.rows, self.videos = EncodedQuestions(str(folder), split), 0
        self.worlds = QuestionWorlds(manifest) if protocol == "counterfactual" else None

    def add(self, shard: ShardReader, key: str) -> None:
        """Add the next video. UserError as `EncodedQuestions.add` and `QuestionWorlds.add`."""
        content = shard.read_json(key, QUESTIONS) or {}
        self.rows.add(self.videos, content, scene_index(key, unknown=-1))
        if self.worlds is not None:
            self.worlds.add(shard, key, content, self.videos)
        self.videos += 1


class InMemoryQuestions(QuestionDataset):
    """All questions of a split, its slots in memory, one copy a node."""

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        protocol: str = "published",
        blind: bool = False,
        **sampling: Any,
    ) -> None:
        """`sampling`: fields of `FrameSampling`. `protocol`: what counterfactual questions see.

        Raises UserError for an unknown word or answer (naming it, the question and the scene),
        frames that do not fit in the video, a split without questions or answered in part, missing
        worlds, and `blind` with a single video.
        """
        frame_sampling, manifest = FrameSampling(**sampling), Manifest.load(folder)
        frame_sampling.check(folder, manifest.frames)
        questions = QuestionReader(folder, split, manifest, protocol)
        slots = load_slots(folder, split, visit=questions.add)  # one pass over the shards
        if not questions.videos:  # another process of this node has read the slots
            for shard, key in open_videos(folder, split):
                questions.add(shard, key)
        if not questions.rows.type:
            raise UserError(
                f"split {split!r} of {folder} has no questions; "
                "ALOE needs <key>.questions.json members"
            )
        super().__init__(questions.rows, slots, frame_sampling, questions.worlds, blind)


def no_answers(folder: str | Path, split: str) -> str:
    """The message that a split has no answers to train on."""
    return (
        f"split {split} of {folder} has questions without answers, from which nothing can be"
        " learned: take another split, or import it with questions that have answers"
    )


class VideoQuestions(InMemoryDataset):
    """The same questions, a sample being a video with all of its questions; `len()` counts videos.

    The questions of a sample see the same first frame.
    """

    def __init__(
        self, dataset: QuestionDataset, question_types: Sequence[str] = QUESTION_TYPES
    ) -> None:
        """Only questions of `question_types` are asked, and only videos that have some are samples.

        UserError if no question is of these types.
        """
        self.dataset, self.sampling = dataset, dataset.sampling
        self.asked = np.flatnonzero(np.isin(dataset.type, question_types))
        if not len(self.asked):
            raise UserError(
                f"question_types={list(question_types)}: no question is of these types; "
                f"there are {', '.join(sorted(set(dataset.type)))}"
            )
        # The questions of a video are adjacent.
        change = np.flatnonzero(np.diff(dataset.video[self.asked], prepend=-1))
        self.first_asked = np.append(change, len(self.asked))

    def __len__(self) -> int:
        return len(self.first_asked) - 1

    def sample_names(self, ids: Any) -> list[str]:
        """For messages: the scene of each video, `scene 10012`."""
        return [f"scene {self.dataset.scene[self.asked[self.first_asked[i]]]}" for i in ids]

    def questions(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """The questions (Q,) of videos `ids` (V,), and the place in `ids` of each's video (Q,)."""
        ids = np.asarray(ids, np.int64)
        ranges = [self.asked[self.first_asked[i] : self.first_asked[i + 1]] for i in ids]
        return np.concatenate(ranges), np.repeat(np.arange(len(ids)), [len(r) for r in ranges])

    def get_batch(self, ids: Any, sample: Any) -> dict[str, torch.Tensor]:
        """All asked questions of the videos `ids` (V,), as `QuestionDataset.get_batch`.

        `sample` (V,): the index of each video in the run.
        """
        questions, video = self.questions(ids)
        return self.dataset.get_batch(questions, np.asarray(sample, np.int64)[video])
