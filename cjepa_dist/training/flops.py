"""Floating-point operations (FLOP) of a training step, and the peak of a device.

Their ratio is the model FLOP utilisation (MFU). The count is made once, on a copy of the task on
the meta device, which has shapes and no values: nothing is computed, no random generator moves,
and the run stays the same bit for bit. An unknown device has no peak, hence no MFU; a guess could
give more than 100 %.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cjepa_dist.tasks.base import Weights

# FLOP/s of dense bf16 matrix products, from the makers' data sheets (without sparsity). The first
# key counts whose words are all in torch.cuda.get_device_name(), so the slower variants of a chip
# come before it.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_flops(name: str, precision: str) -> float | None:
    """Dense bf16 FLOP/s of the device `name`; None for another precision or device."""
    if precision != "bf16":
        return None
    words = set(name.replace("-", " ").split())
    return next((value for key, value in PEAK_FLOPS.items() if words >= set(key.split())), None)


def meta_copy(task: nn.Module) -> nn.Module:
    """A copy of `task` without values, for `step_flops`; make it before the task is wrapped."""
    return copy.deepcopy(task).to("meta").train()


def step_flops(
    meta_task: nn.Module, batches: list[dict[str, Tensor]], step: int, weights: Weights
) -> int:
    """FLOP of the matrix products of forward and backward over `batches`; a multiply-add is two.

    `meta_task` is from `meta_copy`; `weights` are those of the loss terms (`term_weights`). These
    are model FLOP: without the optimizer's, without what a fused kernel computes a second time,
    and without the extra forward of causal terms under gradient accumulation.
    """
    batch = {name: value.to("meta") for name, value in batches[0].items()}
    context = meta_task.step_context([batch], step, weights)  # type: ignore[operator]
    with FlopCounterMode(display=False) as counter:
        meta_task(batch, context).loss.backward()
    return counter.get_total_flops() * len(batches)  # all passes have about the same shapes
