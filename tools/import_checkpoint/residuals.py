"""Residual statistics of an imported world model, which a released file does not hold."""

from __future__ import annotations

import math

import numpy as np
import torch

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.tasks.base import StepContext
from cjepa_dist.tasks.world_model import WorldModelTask
from tools.import_checkpoint.schema import ImportCheckpoint

BATCH_SIZE = 64


def add_statistics(
    task: WorldModelTask, config: ImportCheckpoint, manifest: Manifest | None
) -> str:
    """Set the task's statistics from the data, if there are any, and say what is known of them."""
    if manifest is None:
        return (
            "residuals were not measured: evaluate_graph uses variance 1, median 1 and a zero "
            "empty slot; data=DIR measures them"
        )
    source = InMemoryWindows(
        config.data,
        config.split,
        WindowSpec(
            history_frames=task.config.predictor.history_frames,
            pred_frames=task.config.predictor.pred_frames,
            frameskip=task.config.frameskip,
        ),
    )
    if manifest.empty_slot is not None:
        task.empty.copy_(torch.tensor(manifest.empty_slot))
    count = measure_residuals(task, source, config.windows)
    return (
        f"residuals of {count} windows of {config.data}: mean variance {task.sigma2.mean():.4g}, "
        f"median {task.tau:.4g} nats; empty slot "
        + ("from the manifest" if manifest.empty_slot is not None else "unknown (0)")
    )


@torch.no_grad()
def measure_residuals(task: WorldModelTask, source: InMemoryWindows, windows: int) -> int:
    """Set the task's sigma2 and tau on windows spread evenly over the split, with no slot hidden.

    Returns the number of windows.
    """
    ids = np.linspace(0, len(source) - 1, min(windows, len(source))).astype(np.int64)
    device, slots = task.sigma2.device, source.shape[1]
    for _ in range(2):  # the median needs the variance, which the first pass measures
        total = torch.zeros((), device=device)
        for part in np.array_split(ids, math.ceil(len(ids) / BATCH_SIZE)):
            batch = to_device(source.get_batch(part, np.arange(len(part))), device)
            none_hidden = torch.zeros(len(part), slots, dtype=torch.bool, device=device)
            statistics = task(batch, StepContext(masks=none_hidden)).statistics
            total = total + statistics
        task.update_statistics(total)
    return len(ids)
