"""The task of a config."""

from __future__ import annotations

from cjepa_dist.config.schema import TrainAloe, TrainWorldModel
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask


def build_task(config: TrainWorldModel | TrainAloe) -> WorldModelTask | VqaTask:
    return VqaTask(config) if isinstance(config, TrainAloe) else WorldModelTask(config)
