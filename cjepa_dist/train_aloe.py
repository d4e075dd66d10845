"""Train ALOE on slots and questions.

accelerate launch -m cjepa_dist.train_aloe CONFIG.yaml data=DIR run=RUN [key=value ...]
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.config import command_line, schema
from cjepa_dist.data.counterfactual_worlds import describe_missing_worlds
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions, no_answers
from cjepa_dist.data.streaming import prefetcher
from cjepa_dist.data.streaming.questions import StreamingQuestions
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.training.loop import train
from cjepa_dist.training.run import Validation, total_steps


def main(config: schema.TrainAloe) -> int:
    model, manifest = config.aloe, Manifest.load(config.data)
    manifest.check_slots(
        model.slots, model.slot_dim, config.data, "the config (aloe.slots x aloe.slot_dim)"
    )
    if not config.group_by_video and len(config.question_types) < len(QUESTION_TYPES):
        raise UserError(
            f"question_types={config.question_types} selects from the questions of a video: set "
            "group_by_video=true"
        )
    train_set = open_train_split(config)
    questions = in_memory_questions(config, config.val_split, eval_start=config.eval_start)
    validation = VideoQuestions(questions) if config.group_by_video else questions
    steps = total_steps(config.loop, len(train_set))
    train_set.sampling.unnegated_until = (
        round(config.unnegated_fraction * steps) * config.loop.global_batch_size
    )
    torch.manual_seed(config.seed)
    ids = np.arange(len(validation), dtype=np.int64)
    return train(VqaTask(config), train_set, Validation(validation, ids), config)


def open_train_split(
    config: schema.TrainAloe,
) -> InMemoryQuestions | VideoQuestions | StreamingQuestions:
    """The questions of the train split, read as `reading` says."""
    sampling: dict[str, Any] = {"starts": config.starts, "shuffle": config.shuffle_slots}
    if config.reading.kind == "streaming":
        if config.blind:
            raise UserError(
                "blind=true shows slots of other videos, which a stream does not hold: set "
                "reading.kind=in_memory"
            )
        frames = FrameSampling(
            frames=config.aloe.frames, stride=config.stride, seed=config.seed, **sampling
        )
        return StreamingQuestions(
            config.data,
            config.train_split,
            frames,
            protocol=config.protocol,
            group_by_video=config.group_by_video,
            question_types=config.question_types,
            **prefetcher.prefetcher_options(config.reading, config.run),
        )
    prefetcher.check_in_memory_options(config.reading)
    if config.reading.kind == "device":
        raise UserError(
            "reading.kind=device is for world models: set reading.kind=in_memory, or streaming"
        )
    questions = in_memory_questions(config, config.train_split, **sampling)
    return VideoQuestions(questions, config.question_types) if config.group_by_video else questions


def in_memory_questions(config: schema.TrainAloe, split: str, **sampling: Any) -> InMemoryQuestions:
    """The questions of a split, in memory; prints how many have no world.

    Raises UserError if they have no answers, which training and validation need.
    """
    questions = InMemoryQuestions(
        config.data,
        split,
        frames=config.aloe.frames,
        stride=config.stride,
        seed=config.seed,
        protocol=config.protocol,
        blind=config.blind,
        **sampling,
    )
    if not questions.labelled:
        raise UserError(no_answers(config.data, split))
    if questions.lacks_world.any() and os.environ.get("RANK", "0") == "0":
        missing = int(questions.lacks_world.sum())
        total = int((questions.type == "counterfactual").sum())
        print(f"{split}: {describe_missing_worlds(missing, total)}", flush=True)
    return questions


if __name__ == "__main__":
    command_line.launch(schema.TrainAloe, main)
