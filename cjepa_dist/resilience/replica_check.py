"""Compares replicas of the weights at run time (`loop.replica_check_every`).

One checksum per process, one all_gather, one wait for the device.
"""

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
    """() int64 of the bits of `tensors`; any single change alters it. Stays on the device.

    The bits of each tensor are summed as integers, the sums weighted by odd numbers, all modulo
    2^64.
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
    """Raises UserError where ranks hold different `tensors`, and names the ranks in the minority.

    All ranks call it, and all raise.
    """
    if world_size() == 1 or not tensors:
        return
    mine = tensor_checksum(tensors)
    gathered = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(gathered, mine)
    checksums = torch.stack(gathered).tolist()
    (usual, count), *_ = Counter(checksums).most_common()
    if wrong := [rank for rank, value in enumerate(checksums) if value != usual]:
        which = (
            f"ranks {', '.join(map(str, wrong))} differ from the others"
            if 2 * count > len(checksums)
            else "there is no majority"
        )
        raise UserError(
            f"the replicas of the weights differ after step {step} (loop.replica_check_every): "
            f"checksums by rank {checksums}, {which}; a memory fault or different software: leave "
            "these machines out; the same command goes on from the last checkpoint"
        )
