"""What stands in the files of a fake CLEVRER: videos with the oddities of the real ones.

simulated videos ──oddities──> SimulatedVideo ─┬─> slots by key
                                               ├─> questions as published
                                               └─> annotation, or none
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

import numpy as np

from data_prep.simulate import annotation, generation, ground_truth, world
from data_prep.simulate.__main__ import simulate_videos
from data_prep.simulate.questions.questions import make_questions
from data_prep.simulate.settings import SPLITS, Simulate, scene_indices
from data_prep.simulate.video import SimulatedVideo, counterfactual_histories

SHORT_VIDEO = 1  # number of the video of train that has too few frames
SHORT_FRAMES = 104
CROWDED_VIDEO = 2  # number of the video of train with more objects than slots
CROWDED_OBJECTS = 8
NOT_ANNOTATED = {"train": 3, "val": 1}  # split: number of a video without an annotation
KEYS = {"pixels": "{}_pixels.mp4", "video": "video_{:05d}.mp4"}
PRIVATE = ("program", "answer")  # what the public questions of test lack


def odd_videos(
    config: Simulate, oddities: bool
) -> Generator[tuple[str, SimulatedVideo], None, None]:
    """(split, video) of all splits in order, simulated as `cjepa simulate` does."""
    order = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    for (split, index), video in zip(order, simulate_videos(config, order), strict=True):
        if oddities and (split, index) == ("train", SHORT_VIDEO):
            yield split, dataclasses.replace(video, slots=video.slots[:SHORT_FRAMES])
        elif oddities and (split, index) == ("train", CROWDED_VIDEO):
            yield split, crowded_video(config, split, index, video)
        else:
            yield split, video


def crowded_video(
    config: Simulate, split: str, index: int, usual: SimulatedVideo
) -> SimulatedVideo:
    """A video with more objects than slots, in the place of a usual one; some are in no slot."""
    world_rng, slot_rng, question_rng = (
        np.random.default_rng([config.seed, SPLITS.index(split), index, stream])
        for stream in range(3)
    )
    scene = generation.generate(world_rng, CROWDED_OBJECTS)
    scene_index = scene_indices(config)[split] + index
    order = slot_rng.permutation(config.slots)
    slot_object, background = np.full(config.slots, -1), np.zeros(config.slots, bool)
    slot_object[order[1:]] = slot_rng.permutation(CROWDED_OBJECTS)[: config.slots - 1]
    background[order[0]] = True
    shape = (ground_truth.GROUND_TRUTH_FRAMES, config.slots, config.slot_dim)
    noise = slot_rng.standard_normal(shape, np.float32)
    slots = ground_truth.encode_world(scene, slot_object, background, noise, config.encoder)
    questions = make_questions(
        world.history(scene), counterfactual_histories(scene, {}), scene_index, question_rng
    )
    return dataclasses.replace(
        usual,
        slots=slots[: len(usual.slots)].astype(config.dtype),
        annotation=annotation.annotate(scene, scene_index),
        questions=questions,
    )


def is_annotated(split: str, number: int, oddities: bool) -> bool:
    """Whether video `number` of a split has an annotation; those of test are not public."""
    return split in NOT_ANNOTATED and not (oddities and NOT_ANNOTATED[split] == number)


def take_split(
    videos: Iterator[tuple[str, SimulatedVideo]], config: Simulate, split: str
) -> Iterator[SimulatedVideo]:
    """The videos of the next split; to be used up before those after it."""
    return (video for _, video in islice(videos, getattr(config, split)))


def published_questions(questions: dict[str, Any], split: str) -> dict[str, Any]:
    """The questions of a video as published: in CLEVRER's order, in test without answers."""
    hidden = PRIVATE if split == "test" else ()

    def shown(entry: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in entry.items() if name not in hidden}
        if "choices" in kept:
            kept["choices"] = [shown(choice) for choice in kept["choices"]]
        return kept

    return {
        "questions": [shown(question) for question in questions["questions"]],
        "scene_index": questions["scene_index"],
        "video_filename": questions["video_filename"],
    }
