"""Communication between the processes of a run, where no engine does it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, without gradient.

    Returns the tensor itself on one process, and a meta tensor as it is, since it has no values.
    """
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
    """This process's part of a tensor that may be sharded; shares its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded; all ranks must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `full_tensor`: `full`, the same on all ranks, laid out as `like` is."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor. The import of that type takes a second: most runs do without."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def first_error(mine: str | None, group: dist.ProcessGroup | None = None) -> str | None:
    """The error message of the first rank that has one, else None; all ranks call it.

    So all ranks fail together, and none waits for one that has failed. `group` is for a thread
    that must not use the default group.
    """
    if world_size() == 1:
        return mine
    found: list[str | None] = [None] * world_size()
    dist.all_gather_object(found, mine, group=group)
    return next((text for text in found if text is not None), None)


def from_main(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """The `value` of rank zero, on all ranks; all call it."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


class CpuGroups:
    """Two process groups of all ranks on the CPU, one for each thread; None on one process.

    `control` is for the main thread, `checkpoint` for the thread that writes checkpoints: in one
    group the messages of two threads would mix. All ranks make one, before the model is wrapped,
    and keep it as long as the model.
    """

    def __init__(self) -> None:
        several = world_size() > 1
        self.control = dist.new_group(backend="gloo") if several else None
        self.checkpoint = dist.new_group(backend="gloo") if several else None
        # When a gloo group is destroyed it waits for its threads, and they wait for the GIL to
        # release their last tensors. So the last reference to it must not be dropped by something
        # that holds the GIL, as DDP's reducer does: a run could hang after its last step (torch
        # 2.13). These references are dropped without the GIL, and live longer.
        self.backends = gloo_backends(self.control, self.checkpoint)


def gloo_backends(*groups: dist.ProcessGroup | None) -> list[Any]:
    """The gloo backends of the default group and of `groups`; empty on one process."""
    if world_size() == 1:
        return []
    found = [
        group
        for group in (dist.group.WORLD, *groups)
        if group is not None and "cpu:gloo" in dist.get_backend_config(group)
    ]
    return [group._get_backend(torch.device("cpu")) for group in found]


def rank() -> int:
    """The number of this process, 0 without a launcher."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, ...) of all ranks, one rank after the other; n may differ; all ranks call it."""
    if world_size() == 1:
        return rows
    found: list[torch.Tensor] = [rows] * world_size()
    dist.all_gather_object(found, rows)
    return torch.cat(found)


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank zero, which writes what is the same on all ranks."""
    return not dist.is_initialized() or dist.get_rank() == 0
