"""Finding, checking and loading the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from cjepa_dist.checkpoint.integrity import checkpoint_steps, verify_checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is intact, None if there is none; warns of damaged ones."""
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step_{step:08d}"
        fault = verify_checkpoint(path)
        if fault is None:
            return path
        print(f"warning: checkpoint {path} is damaged ({fault}); trying the one before", flush=True)
    return None


def load_checkpoint(
    path: Path,
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema_weights: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Restore task, optimizers and running means in place; returns the content of meta.json."""
    state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
    if ema_weights is not None:
        state["mean"] = ema_weights
    dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    task.load_state_dict(state["task"])
    set_optimizer_state_dict(task, optimizers, state["optimizer"])
    return json.loads((path / "meta.json").read_text())
