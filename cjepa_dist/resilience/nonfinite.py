"""Steps with a non-finite loss or gradient change nothing, the same on all ranks.

    loss ──propagate_nonfinite──> backward ──all-reduce of gradients──> gradient norm: not finite
    on every rank as soon as one rank's loss or gradient is not
    update_if_finite(finite, update, ...)   weights, optimizer and statistics change, or stay as
                                            they are bit for bit

Nothing here asks a GPU for a value. skipped_steps.py counts and logs the steps later, when the
metrics are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from cjepa_dist.runtime.collectives import local_part

# Integer types by element size in bytes.
INT_DTYPE_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, NaN with a gradient of NaN.

    A mean square that overflows has finite gradients, so the loss alone would not be enough.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def count_steps_on_device(optimizers: list[torch.optim.Optimizer]) -> None:
    """On a GPU, let the optimizers keep their step counts there, so that they can be reverted
    without waiting for the GPU."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            on_gpu = group["params"][0].is_cuda
            if on_gpu and "capturable" in group and not group["fused"]:  # fused ones do already
                group["capturable"] = True
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    if "step" in state:
                        state["step"] = state["step"].to(parameter.device)


def update_if_finite(
    finite: Tensor,
    update: Callable[[], None],
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    others: Iterable[Tensor] = (),
) -> None:
    """Call `update` if `finite` () bool, else change nothing.

    On a CPU the value is read first. On a GPU that would drain the queue of launches, so the
    update is made, and reverted where it was not finite. `others` are tensors that `update`
    changes beside the weights, buffers and optimizer state.
    """
    if finite.is_cpu:
        if finite:
            update()
    else:
        update_then_revert(finite, update, task, optimizers, list(others))


@torch.no_grad()
def update_then_revert(
    finite: Tensor,
    update: Callable[[], None],
    task: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    others: Iterable[Tensor] = (),
) -> None:
    """Call `update`, then restore what it changed unless `finite`.

    Needs a second copy of weights and optimizer state while it runs. It selects bits as integers,
    since NaN times 0 is NaN, in four launches for all tensors.
    """
    before = list(integer_views(task, optimizers, others))
    kept = [tensor.clone() for tensor in before]
    update()
    # Optimizer state that this very step created becomes 0, its initial value.
    torch._foreach_mul_(list(integer_views(task, optimizers, others)), finite.int())
    torch._foreach_mul_(kept, finite.logical_not().int())
    torch._foreach_add_(before, kept)


def integer_views(
    task: nn.Module, optimizers: list[torch.optim.Optimizer], others: Iterable[Tensor] = ()
) -> Iterator[Tensor]:
    """This process's part of weights, buffers, optimizer state and `others`, as integers of the
    same size; they share memory."""
    states = (
        value for part in optimizers for state in part.state.values() for value in state.values()
    )
    for tensor in (*task.parameters(), *task.buffers(), *others, *states):
        if isinstance(tensor, Tensor):
            part = local_part(tensor.detach())
            yield part.view(INT_DTYPE_BY_SIZE[part.element_size()])
