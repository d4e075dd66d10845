"""Steps whose loss or gradient is not finite: they change nothing, the same on all ranks, and are counted and written down.

    loss ──spread──> backward ──DDP──> gradient norm: not finite on every rank as soon as one rank's loss or gradient is not
    guarded(norm is finite, update, ...)     weights, optimizer and statistics move, or stay as they are bit for bit
    Skips.read(), when metrics are read      RUN/skipped.jsonl, and the count against loop.max_skipped_steps

Nothing here asks a GPU for a value before metrics are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from cjepa_dist.runtime.collectives import local_part

INT_DTYPE_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, NaN with a gradient of NaN (a mean square that overflows has a finite one)."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def count_steps_on_device(optimizers: list[torch.optim.Optimizer]) -> None:
    """On a GPU, let the optimizers count their steps there, so that `guarded` can take a count back without a sync."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if (
                group["params"][0].is_cuda and "capturable" in group and not group["fused"]
            ):  # fused ones do already
                group["capturable"] = True
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    if "step" in state:
                        state["step"] = state["step"].to(parameter.device)


def update_if_finite(
    good: Tensor,
    update: Callable[[], None],
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    others: Iterable[Tensor] = (),
) -> None:
    """`update` if `good` () bool, else nothing. A CPU asks; on a GPU it is done and taken back, since to ask would drain its queue.

    `others`: what it changes beside the weights, buffers and optimizer state.
    """
    if good.is_cpu:
        if good:
            update()
    else:
        update_then_revert(good, update, task, optimizers, list(others))


@torch.no_grad()
def update_then_revert(
    good: Tensor,
    update: Callable[[], None],
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    others: Iterable[Tensor] = (),
) -> None:
    """Run `update`, then put back what it changed unless `good`. Costs a second copy of weights and optimizer state while it runs.

    Selects bits as integers, since NaN times 0 is NaN; in four launches for all tensors.
    """
    before = list(integer_views(task, optimizers, others))
    kept = [tensor.clone() for tensor in before]
    update()
    torch._foreach_mul_(
        list(integer_views(task, optimizers, others)), good.int()
    )  # state made by this very step becomes 0, as it begins
    torch._foreach_mul_(kept, good.logical_not().int())
    torch._foreach_add_(before, kept)


def integer_views(
    task: nn.Module, optimizers: list[torch.optim.Optimizer], others: Iterable[Tensor] = ()
) -> Iterator[Tensor]:
    """Weights, buffers, optimizer state and `others`, what this process holds of them, as integers of the same size."""
    states = (
        value for part in optimizers for state in part.state.values() for value in state.values()
    )
    for tensor in (*task.parameters(), *task.buffers(), *others, *states):
        if isinstance(tensor, Tensor):
            held = local_part(tensor.detach())
            yield held.view(INT_DTYPE_BY_SIZE[held.element_size()])
