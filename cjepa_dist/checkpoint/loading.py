"""Finding, checking and loading the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cjepa_dist.checkpoint.integrity import checkpoint_path, choose_checkpoint, unreadable
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.disk_full import find_os_error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there is no checkpoint; warns of damaged ones.

    Raises UserError where one cannot be read, or where none is whole.
    """
    choice = choose_checkpoint(folder)
    return None if choice is None else checkpoint_path(folder, choice.step)


def load_checkpoint(
    path: Path,
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema_weights: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Restore task, optimizers and running means in place; returns the content of meta.json.

    All ranks call it. Raises UserError where this rank cannot read the checkpoint, where another
    rule updated some weights, and, on all ranks, where another cannot read its share of a sharded
    one.
    """
    # Imported here: this takes a second of CPU, and evaluations load no optimizer.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
    if ema_weights is not None:
        state["mean"] = ema_weights
    try:
        check_update_rules(path, state["optimizer"])
        dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, CheckpointException) as error:
        if (fault := find_os_error(error)) is None:
            raise
        raise unreadable(path, fault) from error
    task.load_state_dict(state["task"])
    set_optimizer_state_dict(task, optimizers, state["optimizer"])
    return meta


def check_update_rules(path: Path, optimizer: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint lacks a part of the state of an optimizer."""
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    for name, values in optimizer["state"].items():
        if any(f"optimizer.state.{name}.{key}" not in stored for key in values):
            raise UserError(
                f"{path} has no state of the optimizer for {name}: it was written when another rule"
                " updated that weight; finish the run with the version of RUN/environment.json, or"
                " start a new one"
            )
