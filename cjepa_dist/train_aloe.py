"""Train ALOE on slots and questions: `accelerate launch -m cjepa_dist.train_aloe CONFIG.yaml data=DIR run=RUN [key=value ...]`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from cjepa_dist import config as schema
from cjepa_dist.clevrer.vocabulary import TYPES
from cjepa_dist.data.questions import QuestionSource, VideoQuestions
from cjepa_dist.data.shards import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.tasks import VqaTask
from cjepa_dist.training.loop import total_steps, train


def main(config: schema.TrainAloe) -> int:
    model, manifest = config.aloe, Manifest.load(config.data)
    manifest.check_slots(model.slots, model.slot_dim, config.data, "the config (aloe.slots x aloe.slot_dim)")
    read = partial(
        QuestionSource, config.data, frames=model.frames, stride=config.stride,
        protocol=config.protocol, blind=config.blind, seed=config.seed,
    )  # fmt: skip
    questions = (
        read(config.train_split, starts=config.starts, shuffle=config.shuffle_slots),
        read(config.val_split, eval_start=config.eval_start),
    )
    if not config.by_video and len(config.types) < len(TYPES):
        raise UserError(f"types={config.types} chooses among the questions of a video: it needs by_video=true")
    source = VideoQuestions(questions[0], config.types) if config.by_video else questions[0]
    validation = VideoQuestions(questions[1]) if config.by_video else questions[1]
    questions[0].shown.affirm_until = round(config.affirm * total_steps(config.loop, len(source))) * config.loop.global_batch
    torch.manual_seed(config.seed)
    return train(VqaTask(config), source, validation, config, val_ids=np.arange(len(validation), dtype=np.int64))


if __name__ == "__main__":
    schema.launch(schema.TrainAloe, main)
