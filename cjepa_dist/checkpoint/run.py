"""The config and the trained task of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.config import merge, schema
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.format.storage import distrust
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.build import Task, build_task


def read_config(run_dir: str | Path) -> TrainConfig:
    """The resolved config of a run. Raises UserError if `run_dir` is not a run directory."""
    path = Path(run_dir) / "config.yaml"
    try:
        is_run = path.is_file()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not is_run:
        raise UserError(f"{run_dir} is not a run directory: it has no config.yaml")
    content = merge.read_yaml(path)
    config: TrainConfig
    if "aloe" in content:
        config = merge.build(schema.TrainAloe, content)
    else:
        config = merge.build(schema.TrainWorldModel, content)
    distrust(config.data, str(path))
    return config


def load_task(run_dir: str | Path) -> tuple[Task, Any, int]:
    """(task on the CPU in eval mode, config, step) of a run's newest intact checkpoint.

    Raises UserError if there is none, if one cannot be read, or if none is whole.
    """
    config = read_config(run_dir)
    path = newest_checkpoint(Path(run_dir) / "checkpoints")
    if path is None:
        raise UserError(f"run {run_dir} has no checkpoint: train it first")
    weights = load_file(path / "model.safetensors")
    task = build_task(config)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config: {str(error).splitlines()[-1].strip()}"
        ) from error
    return task.eval(), config, json.loads((path / "meta.json").read_text())["step"]
