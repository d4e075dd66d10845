"""Train ALOE on slots and questions: `accelerate launch -m cjepa_dist.train_aloe CONFIG.yaml data=DIR run=RUN [key=value ...]`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from cjepa_dist.clevrer.vocabulary import TYPES
from cjepa_dist.config import command_line, schema
from cjepa_dist.data.counterfactual_worlds import left_out
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.frame_sampling import FrameSampling
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.streaming import prefetcher
from cjepa_dist.data.streaming.questions import StreamingQuestions
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.training.loop import total_steps, train


def main(config: schema.TrainAloe) -> int:
    model, manifest = config.aloe, Manifest.load(config.data)
    manifest.check_slots(
        model.slots, model.slot_dim, config.data, "the config (aloe.slots x aloe.slot_dim)"
    )
    if not config.by_video and len(config.types) < len(TYPES):
        raise UserError(
            f"types={config.types} chooses among the questions of a video: it needs by_video=true"
        )
    source = open_source(config)
    questions = resident(config, config.val_split, eval_start=config.eval_start)
    validation = VideoQuestions(questions) if config.by_video else questions
    source.shown.unnegated_until = (
        round(config.unnegated_fraction * total_steps(config.loop, len(source)))
        * config.loop.global_batch_size
    )
    torch.manual_seed(config.seed)
    return train(
        VqaTask(config),
        source,
        validation,
        config,
        val_ids=np.arange(len(validation), dtype=np.int64),
    )


def open_source(
    config: schema.TrainAloe,
) -> InMemoryQuestions | VideoQuestions | StreamingQuestions:
    """The questions of the train split, read as `reading` says."""
    how: dict[str, Any] = {"starts": config.starts, "shuffle": config.shuffle_slots}
    if config.reading.kind == "streaming":
        if config.blind:
            raise UserError(
                "blind=true shows slots of videos that a stream does not hold: take reading.kind=in_memory"
            )
        shown = FrameSampling(
            frames=config.aloe.frames, stride=config.stride, seed=config.seed, **how
        )
        return StreamingQuestions(
            config.data, config.train_split, shown, protocol=config.protocol, by_video=config.by_video, types=config.types,
            **prefetcher.prefetcher_options(config.reading, config.run),
        )  # fmt: skip
    prefetcher.check_in_memory_options(config.reading)
    if config.reading.kind == "device":
        raise UserError(
            "reading.kind=device is for world models: take reading.kind=in_memory, or streaming"
        )
    questions = resident(config, config.train_split, **how)
    return VideoQuestions(questions, config.types) if config.by_video else questions


def resident(config: schema.TrainAloe, split: str, **how: Any) -> InMemoryQuestions:
    """The questions of a split, in memory; says how many are left out."""
    questions = InMemoryQuestions(
        config.data, split, frames=config.aloe.frames, stride=config.stride, seed=config.seed, protocol=config.protocol, blind=config.blind,
        **how,
    )  # fmt: skip
    if questions.left_out.any() and os.environ.get("RANK", "0") == "0":
        print(
            f"{split}: {left_out(int(questions.left_out.sum()), int((questions.type == 'counterfactual').sum()))}",
            flush=True,
        )
    return questions


if __name__ == "__main__":
    command_line.launch(schema.TrainAloe, main)
