"""Reading checkpoints and the models in run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from cjepa_dist.checkpoint.integrity import checkpoint_steps, verify_checkpoint
from cjepa_dist.config import merge, schema
from cjepa_dist.errors import UserError

if TYPE_CHECKING:
    from cjepa_dist.tasks.vqa import VqaTask
    from cjepa_dist.tasks.world_model import WorldModelTask


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the best validation loss (a run with loop.keep_best), None if none is marked."""
    try:
        path = folder / json.loads((folder / "best.json").read_text())["folder"]
    except (OSError, ValueError, KeyError):
        return None
    return path if path.is_dir() else None


def load_checkpoint(
    path: Path,
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    mean: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Restore task, optimizers and running means in place; returns the meta data."""
    state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
    if mean is not None:
        state["mean"] = mean
    dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    task.load_state_dict(state["task"])
    set_optimizer_state_dict(task, optimizers, state["optimizer"])
    return json.loads((path / "meta.json").read_text())


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; a damaged one is passed over with a warning. None if there is no checkpoint."""
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step_{step:08d}"
        fault = verify_checkpoint(path)
        if fault is None:
            return path
        print(f"warning: checkpoint {path} is damaged ({fault}); trying the one before", flush=True)
    return None


def read_config(run: str | Path) -> schema.TrainWorldModel | schema.TrainAloe:
    """The resolved config of a run folder. Raises UserError if `run` is not one."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml")
    content = merge.read_yaml(path)
    return (
        merge.build(schema.TrainAloe, content)
        if "aloe" in content
        else merge.build(schema.TrainWorldModel, content)
    )


def load_task(run: str | Path) -> tuple[WorldModelTask | VqaTask, Any, int]:
    """(task on the CPU in eval mode, config, step) of a run's newest good checkpoint. Raises UserError if there is none."""
    from cjepa_dist.tasks.build import build_task

    config = read_config(run)
    path = newest_checkpoint(Path(run) / "checkpoints")
    if path is None:
        raise UserError(f"run {run} has no checkpoint: train it first")
    weights = load_file(path / "model.safetensors")
    task = build_task(config)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config: {str(error).splitlines()[-1].strip()}"
        ) from error
    return task.eval(), config, json.loads((path / "meta.json").read_text())["step"]
