"""The task that a training config asks for."""

from __future__ import annotations

from cjepa_dist.config.schema import TrainAloe, TrainConfig
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask

Task = WorldModelTask | VqaTask


def build_task(config: TrainConfig) -> Task:
    """An untrained task, on the CPU."""
    return VqaTask(config) if isinstance(config, TrainAloe) else WorldModelTask(config)
