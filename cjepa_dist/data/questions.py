"""CLEVRER questions about the videos of a split, as batches for ALOE.

    questions.json ─encode─> rows of 32 words ───────────────┐
    slots (V, T, S, D), stored type, one copy a node ─frames─┼─gather(ids, sample)─> batch
    worlds without an object (W, 128, S, D) ─frames──────────┘   (protocol=counterfactual, intervened.py)

A sample is a question with all its choices. A descriptive question is one row, a multiple-choice question one row a choice;
the rows of a question stand together. Protocol: spec/aloe.md (as SlotFormer and C-JEPA); frames `start + stride * arange(frames)`,
a predictive question T - 128 later, so that it sees the rolled-out end. With `protocol="counterfactual"` a counterfactual question
sees the same frames of the world that it asks about; published systems show it the video, in which the object is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import ROW_WORDS, TYPES
from cjepa_dist.data.counterfactual_worlds import QuestionWorlds, load_question_worlds
from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots, read_split
from cjepa_dist.data.frame_sampling import VIDEO_FRAMES, FrameSampling
from cjepa_dist.data.question_encoding import EncodedQuestions, remove_negation
from cjepa_dist.data.sampler import ShuffledSampler
from cjepa_dist.data.shuffled_videos import other_videos, other_worlds
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import hash_array


class QuestionBatches(ShuffledSampler):
    """Questions about videos that are in memory; `len()` counts them.

    Metadata, numpy arrays: `type` (Q,) str; `subtype` (Q,) str, "" where there is none; `scene`, `question_id`, `video` (Q,) int64;
    `left_out` (Q,) bool: a counterfactual question whose world is not known (`intervened.py`): it sees the video, and has no label;
    a row r: `choice_id` (R,) int64, -1 for a descriptive question, `row_question` (R,) int64, `label` (R,) int64: answer id, or 1/0 for a
    choice, or -1 where the answer is not public. `labelled`: every question has its answer.
    """

    def __init__(
        self,
        rows: EncodedQuestions,
        slots: np.ndarray,
        shown: FrameSampling,
        worlds: QuestionWorlds | None = None,
        blind: bool = False,
    ) -> None:
        """`slots` (V, T, S, D) as stored; with `worlds` counterfactual questions see these.

        `blind` gives each question the slots of another video, or of a world of another one. UserError where some have no answer and
        others have, and for `blind` with a single video.
        """
        self.shown, self.slots, self.shift = shown, slots, max(0, slots.shape[1] - VIDEO_FRAMES)
        self.type, self.subtype = np.array(rows.type), np.array(rows.subtype)
        self.scene, self.question_id, self.video = (
            np.array(x, np.int64) for x in (rows.scene, rows.question_id, rows.video)
        )
        self.first_row = np.array([*rows.first_row, len(rows.label)], np.int64)
        self.choice_id, self.label = (
            np.array(rows.choice_id, np.int64),
            np.array(rows.label, np.int64),
        )
        self.row_question = np.repeat(np.arange(len(self)), np.diff(self.first_row))
        self.words = np.frombuffer(bytes(rows.words), np.uint8).reshape(-1, ROW_WORDS)
        self.labelled = rows.labelled()
        self.is_choice = self.type != "descriptive"
        self.kind = np.array([TYPES.index(name) for name in rows.type], np.int64)
        self.scenes = other_videos(len(slots), shown.seed)[self.video] if blind else self.video
        self.worlds, self.left_out = slots[:0], np.zeros(len(self), bool)
        if worlds is not None:
            self.worlds, self.left_out, asked = worlds.slots, worlds.left_out, worlds.asked
            chosen = (
                other_worlds(worlds.video, shown.seed)[asked]
                if blind and len(worlds.video)
                else asked
            )
            self.scenes = np.where(asked < 0, self.scenes, len(slots) + chosen)
        self.label[self.left_out[self.row_question]] = -1
        self.affirmed = remove_negation(self.words, self.label)

    def __len__(self) -> int:
        return len(self.type)

    def names(self, ids: Any) -> list[str]:
        """For people: scene and question id of each question, `scene 10012 question 3`."""
        return [f"scene {self.scene[i]} question {self.question_id[i]}" for i in ids]

    def rows(self, question: int) -> np.ndarray:
        """The row numbers of a question, (choices,) or (1,)."""
        return np.arange(self.first_row[question], self.first_row[question + 1])

    def gather(self, ids: Any, sample: Any) -> dict[str, torch.Tensor]:
        """The batch of questions `ids` (Q,), with `sample` (Q,) the global sample indices that key the random draws.

        slots (U, F, S, D) float32, each pair of video or world and first frame (and order of slots) once; tokens (R, 32) int64;
        padding (R, 32) bool, True at padding; is_choice (R,) bool; kind (R,) int64, an index into TYPES; row_view (R,) int64, an index
        into slots; label (R,) int64; question, sample (Q,) int64.
        """
        ids, sample = np.asarray(ids, np.int64), np.asarray(sample, np.int64)
        begin, count = self.first_row[ids], np.diff(self.first_row)[ids]
        row_question = np.repeat(np.arange(len(ids)), count)
        rows = np.arange(len(row_question)) + np.repeat(begin - (np.cumsum(count) - count), count)
        start = self.shown.start(sample) + np.where(self.type[ids] == "predictive", self.shift, 0)
        places = np.stack(
            [self.scenes[ids], start, sample if self.shown.shuffle else 0 * sample], axis=1
        )
        views, question_view = np.unique(places, axis=0, return_inverse=True)
        frames = views[:, 1:2] + self.shown.stride * np.arange(self.shown.frames)
        slots = self.frames_of(views[:, 0], frames)
        if self.shown.shuffle:
            draws = hash_array(
                views[:, 2:] * self.slots.shape[2] + np.arange(self.slots.shape[2]),
                self.shown.seed + 1,
            )
            slots = np.take_along_axis(slots, draws.argsort(axis=1)[:, None, :, None], axis=2)
        words, label = self.words[rows], self.label[rows]
        if (plain := sample[row_question] < self.shown.unnegated_until).any():
            words[plain], label[plain] = (part[rows[plain]] for part in self.affirmed)
        words = words.astype(np.int64)
        batch = {
            "slots": widen(slots),
            "tokens": words,
            "padding": words == 0,
            "is_choice": self.is_choice[self.row_question[rows]],
            "kind": self.kind[self.row_question[rows]],
            "row_view": question_view.reshape(-1)[row_question],
            "label": label,
            "question": ids,
            "sample": sample,
        }
        return {
            name: torch.from_numpy(array.copy() if name in ("question", "sample") else array)
            for name, array in batch.items()
        }

    def frames_of(self, scene: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(U, F, S, D) in the stored type: frames (U, F) of scenes (U,), a video's number, or that of a world after all videos'."""
        observed = scene < len(self.slots)
        if observed.all():
            return self.slots[scene[:, None], frames]
        slots = np.empty((*frames.shape, *self.slots.shape[2:]), self.slots.dtype)
        slots[observed] = self.slots[scene[observed, None], frames[observed]]
        slots[~observed] = self.worlds[scene[~observed, None] - len(self.slots), frames[~observed]]
        return slots


class InMemoryQuestions(QuestionBatches):
    """All questions of a split, its slots in memory, one copy a node."""

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        protocol: str = "published",
        blind: bool = False,
        **shown: Any,
    ) -> None:
        """`shown`: fields of `Shown`; `protocol` says what counterfactual questions see (see above), `blind` is as of `Questions`.

        Raises UserError for an unknown word or answer (naming it, the question and the scene), frames that do not fit in the video,
        a split without questions, a split answered in part, `blind` with a single video; worlds that are not there (`intervened.py`).
        """
        how, manifest = FrameSampling(**shown), Manifest.load(folder)
        how.check(folder, manifest.frames)
        rows = EncodedQuestions(str(folder), split)
        members = ("questions.json",)  # annotations would take four times as long to read
        for video, sample in enumerate(read_split(folder, split, members=members)):
            rows.add(video, sample.questions, scene_of(sample.key))
        if not rows.type:
            raise UserError(
                f"split {split!r} of {folder} has no questions; ALOE needs <key>.questions.json members"
            )
        worlds = (
            load_question_worlds(folder, split, rows.type.count("counterfactual"))
            if protocol == "counterfactual"
            else None
        )
        super().__init__(rows, load_slots(folder, split), how, worlds, blind)


class VideoQuestions(ShuffledSampler):
    """The same questions, a sample being a video with all of its own: `len()` counts videos. They share the video's first frame."""

    def __init__(self, source: QuestionBatches, types: Sequence[str] = TYPES) -> None:
        """Only questions of `types` are asked, and videos that have some. UserError where no question is of these types."""
        self.source, self.shown = source, source.shown
        self.asked = np.flatnonzero(np.isin(source.type, types))
        if not len(self.asked):
            raise UserError(
                f"types={list(types)}: no question is of these types; there are {', '.join(sorted(set(source.type)))}"
            )
        change = np.flatnonzero(
            np.diff(source.video[self.asked], prepend=-1)
        )  # the questions of a video stand together
        self.first = np.append(change, len(self.asked))

    def __len__(self) -> int:
        return len(self.first) - 1

    def names(self, ids: Any) -> list[str]:
        """For people: the scene of each video, `scene 10012`."""
        return [f"scene {self.source.scene[self.asked[self.first[i]]]}" for i in ids]

    def questions(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """The questions of videos `ids` (V,), and for each its video's place in `ids`; both (Q,)."""
        ids = np.asarray(ids, np.int64)
        ranges = [self.asked[self.first[i] : self.first[i + 1]] for i in ids]
        return np.concatenate(ranges), np.repeat(np.arange(len(ids)), [len(r) for r in ranges])

    def gather(self, ids: Any, sample: Any) -> dict[str, torch.Tensor]:
        """As `Questions.gather`, of all questions of the videos; `sample` (V,) are the global indices of the videos."""
        questions, owner = self.questions(ids)
        return self.source.gather(questions, np.asarray(sample, np.int64)[owner])


def scene_of(key: str) -> int:
    """Of questions that do not say it: a sample's key is `video_%05d` of its scene."""
    digits = "".join(filter(str.isdigit, key))
    return int(digits) if digits else -1
