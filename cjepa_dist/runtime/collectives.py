"""What the processes of a run say to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    pass
from torch.distributed.tensor import DTensor


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, without gradient; the tensor itself on one process, and where it is a meta tensor, which has no values."""
    values = values.detach()
    if (
        dist.is_available()
        and dist.is_initialized()
        and dist.get_world_size() > 1
        and not values.is_meta
    ):
        values = values.clone()
        dist.all_reduce(values)
    return values


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded: then all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_error(mine: str | None, group: dist.ProcessGroup | None = None) -> str | None:
    """The message of the first rank that has one. All ranks call it, so that they fail together instead of waiting for one that did.

    `group`: of all ranks, for a thread that must not use the default one.
    """
    if world_size() == 1:
        return mine
    found: list[str | None] = [None] * world_size()
    dist.all_gather_object(found, mine, group=group)
    return next((text for text in found if text is not None), None)


def gloo_backends(*groups: dist.ProcessGroup | None) -> list[Any]:
    """The gloo parts of the default group and of `groups`; empty on one process."""
    if world_size() == 1:
        return []
    found = [
        group
        for group in (dist.group.WORLD, *groups)
        if group is not None and "cpu:gloo" in dist.get_backend_config(group)
    ]
    return [group._get_backend(torch.device("cpu")) for group in found]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the rank that writes what all have alike."""
    return not dist.is_initialized() or dist.get_rank() == 0
