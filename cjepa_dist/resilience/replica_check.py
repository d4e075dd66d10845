"""Replicas that should be equal, compared at run time (`loop.replica_check_every`): one checksum a process, one all_gather, one wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from cjepa_dist.errors import UserError
from cjepa_dist.resilience.nonfinite import INT_DTYPE_BY_SIZE
from cjepa_dist.runtime.collectives import world_size


@torch.no_grad()
def tensor_checksum(tensors: Iterable[Tensor]) -> Tensor:
    """() int64, of the bits of `tensors`: each tensor's bits summed as integers, the sums weighted by odd numbers, all modulo 2^64.

    Any single change shows. Stays on the device; reads every number once.
    """
    sums = torch.stack(
        [
            value.detach()
            .contiguous()
            .view(-1)
            .view(INT_DTYPE_BY_SIZE[value.element_size()])
            .sum(dtype=torch.int64)
            for value in tensors
        ]
    )
    odd = 2 * torch.arange(len(sums), device=sums.device) + 1
    return (sums * odd).sum()


def compare_replicas(tensors: list[Tensor], step: int) -> None:
    """All ranks call it. Raises UserError, on all of them, naming the ranks whose `tensors` are not those of most ranks."""
    if world_size() == 1 or not tensors:
        return
    mine = tensor_checksum(tensors)
    found = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(found, mine)
    sums = torch.stack(found).tolist()
    (usual, count), *_ = Counter(sums).most_common()
    if wrong := [rank for rank, value in enumerate(sums) if value != usual]:
        which = (
            f"ranks {', '.join(map(str, wrong))} differ from the others"
            if 2 * count > len(sums)
            else "there is no majority"
        )
        raise UserError(
            f"the replicas of the weights differ after step {step} (loop.replica_check_every): checksums by rank {sums}, {which}; "
            "a memory fault or different software: leave these machines out; the same command goes on from the last checkpoint"
        )
