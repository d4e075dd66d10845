"""Residual statistics of an imported world model, which a released file does not hold."""

from __future__ import annotations

import numpy as np
import torch

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.tasks.residuals import measure_residuals
from cjepa_dist.tasks.world_model import WorldModelTask
from tools.import_checkpoint.schema import ImportCheckpoint


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
    ids, count = np.arange(len(source)), min(config.windows, len(source))
    if (measured := measure_residuals(task.predictor, source, ids, windows=count)) is not None:
        task.set_residuals(measured)
    return (
        f"residuals of {count} windows of {config.data}: mean variance {task.sigma2.mean():.4g}, "
        f"median {task.tau:.4g}; empty slot "
        + ("from the manifest" if manifest.empty_slot is not None else "unknown (0)")
    )
