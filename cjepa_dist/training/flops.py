"""Floating-point operations of a step, and what a device could do: their ratio is the model FLOP utilisation (MFU).

Counted once, on a copy of the task on the meta device, which holds shapes and no values: nothing is computed, no generator moves, and the
run stays what it is bit for bit. An unknown device has no peak, and so no MFU: a guessed one gives numbers above 100 %.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 matrix products of one device, FLOP/s, from the makers' data sheets (without sparsity). The first whose words are all in
# torch.cuda.get_device_name() counts, so the slower variants of a chip stand before it.
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
    """Dense FLOP/s of the device called `name` in bf16; None for another precision or where it is not known."""
    if precision != "bf16":
        return None
    words = set(name.replace("-", " ").split())
    return next((value for key, value in PEAK_FLOPS.items() if words >= set(key.split())), None)


def meta_copy(task: nn.Module) -> nn.Module:
    """A copy of `task` without values, for `step_flops`; taken before the task is wrapped or sharded."""
    return copy.deepcopy(task).to("meta").train()


def step_flops(
    shadow: nn.Module, batches: list[dict[str, Tensor]], step: int, progress: float
) -> int:
    """FLOP of the matrix products of a forward and backward over this process's `batches`; a multiply-add is two.

    `shadow` is from `shapes_of`. These are model FLOP: without the optimizer's, and without what a fused kernel computes a second time.
    The survey that causal terms make under accumulation is left out too.
    """
    with FlopCounterMode(display=False) as counter:
        for batch in batches[:1]:  # all of a step's passes have the same shapes, or near enough
            outcome = shadow(
                {name: value.to("meta") for name, value in batch.items()}, step, progress
            )
            outcome.loss.backward()
    return counter.get_total_flops() * len(batches)
