"""The config and the trained task of a run directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load

from cjepa_dist.checkpoint.integrity import (
    checkpoint_path,
    checkpoint_steps,
    parse_checksums,
)
from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.checkpoint.resume import may_change
from cjepa_dist.config import merge, schema
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.format.fingerprint import Fingerprint, fingerprint_of
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


class LoadedRun(NamedTuple):
    """The trained task of a run, and what tells this model from others."""

    task: Task
    config: Any
    step: int
    fingerprint: Fingerprint


def load_task(run_dir: str | Path) -> tuple[Task, Any, int]:
    """(task on the CPU in eval mode, config, step) of a run's newest intact checkpoint.

    Raises UserError if there is none, if one cannot be read, or if none is whole.
    """
    return load_run(run_dir)[:3]


def load_run(run_dir: str | Path) -> LoadedRun:
    """The same, with the fingerprint of the model. Raises UserError as `load_task`."""
    config = read_config(run_dir)
    path = newest_checkpoint(Path(run_dir) / "checkpoints")
    if path is None:
        raise UserError(f"run {run_dir} has no checkpoint: train it first")
    # Not load_file: it takes no path that is not Unicode.
    weights = load((path / "model.safetensors").read_bytes())
    task = build_task(config)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config: {str(error).splitlines()[-1].strip()}"
        ) from error
    step = json.loads((path / "meta.json").read_text())["step"]
    return LoadedRun(task.eval(), config, step, model_fingerprint(path, config))


def model_fingerprint(checkpoint: Path, config: TrainConfig) -> Fingerprint:
    """What a model's predictions depend on: its weights, by their checksum, and its config.

    Fields that may change when a run is resumed are no part of it.
    """
    weights = parse_checksums((checkpoint / "checksums.json").read_bytes())["model.safetensors"]
    return {"weights": weights, "config": config_fingerprint(config)}


def config_fingerprint(config: TrainConfig) -> str:
    """xxh3 of the fields that decide what a run learns."""
    values = dict(merge.flatten(dataclasses.asdict(config)))
    return fingerprint_of({name: v for name, v in values.items() if not may_change(name)})


def newest_fingerprint(run_dir: str | Path) -> Fingerprint | None:
    """The fingerprint of a run's newest checkpoint, whose bytes are not checked; None without one.

    Raises UserError if `run_dir` is no run directory.
    """
    config, folder = read_config(run_dir), Path(run_dir) / "checkpoints"
    for step in reversed(checkpoint_steps(folder)):
        try:
            return model_fingerprint(checkpoint_path(folder, step), config)
        except (OSError, ValueError):
            continue  # damaged, or removed by the run that goes on beside us
    return None
