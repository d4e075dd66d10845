"""A model of a data-parallel step on N H100s, from counted FLOP and bytes.

Nothing here is measured: every assumption is printed with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from cjepa_dist.training.flops import PEAK_FLOPS

PEAK = PEAK_FLOPS["H100"]
MFU = 0.4  # of dense bf16, when the batch is large enough to fill the GPU
# Seconds of an eager step that only launches: some 1,500 kernels at 5 to 7 microseconds each.
LAUNCH_SECONDS = 10e-3
# Bytes/s a GPU, each way: 80 % of NVLink 4's 450 GB/s and of 400 Gb/s InfiniBand.
NVLINK, INFINIBAND = 360e9, 40e9
HOP_NVLINK, HOP_INFINIBAND = 3e-6, 10e-6  # seconds of latency for a step of the ring
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class StepCost:
    """FLOP of a step's forward and backward over the whole batch, and bytes of its gradients."""

    flop: int
    bytes: int


def all_reduce_seconds(size: int, gpus: int) -> float:
    """Seconds of an all-reduce of `size` bytes.

    A ring in each machine, then one between machines on each GPU's share (reduce-scatter,
    all-reduce, all-gather).
    """
    local = min(gpus, GPUS_PER_MACHINE)
    machines = -(-gpus // GPUS_PER_MACHINE)
    inside = 2 * (local - 1) * (size / local / NVLINK + HOP_NVLINK)
    between = 2 * (machines - 1) * (size / local / machines / INFINIBAND + HOP_INFINIBAND)
    return inside + between


def predict_step_seconds(step: StepCost, gpus: int, *, strong: bool) -> tuple[float, float, float]:
    """Seconds of (compute, all-reduce, both without overlap).

    Strong scaling splits the same global batch, weak scaling gives every GPU a batch of its own.
    """
    compute = max(LAUNCH_SECONDS, step.flop / (gpus if strong else 1) / (MFU * PEAK))
    reduce = all_reduce_seconds(step.bytes, gpus)
    return compute, reduce, compute + reduce


def scaling_table(step: StepCost, gpus: list[int]) -> str:
    """Markdown: strong and weak scaling, then the assumptions."""
    lines = [
        f"Model, not measured: a step on N H100s, {GPUS_PER_MACHINE} a machine.",
        "",
        "| GPUs | all-reduce, ms | strong scaling: step, ms | times as fast "
        "| weak scaling: step, ms | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    single = predict_step_seconds(step, 1, strong=True)[2]
    for n in gpus:
        _, reduce, strong = predict_step_seconds(step, n, strong=True)
        weak = predict_step_seconds(step, n, strong=False)[2]
        lines.append(
            f"| {n} | {1e3 * reduce:.3g} | {1e3 * strong:.4g} | {single / strong:.2f} "
            f"| {1e3 * weak:.4g} | {single / weak:.0%} |"
        )
    bound = "launches" if step.flop / (MFU * PEAK) < LAUNCH_SECONDS else "matrix products"
    assumptions = (
        f"{MFU:.0%} of {1e-12 * PEAK:.0f} TFLOP/s bf16",
        f"no eager step below {1e3 * LAUNCH_SECONDS:.0f} ms of launches "
        f"(on one GPU it is bound by {bound})",
        f"gradients float32; a GPU has {1e-9 * NVLINK:.0f} GB/s NVLink within a machine, "
        f"{1e-9 * INFINIBAND:.0f} GB/s InfiniBand beyond",
        f"{1e6 * HOP_NVLINK:.0f} and {1e6 * HOP_INFINIBAND:.0f} us a hop of the ring",
        "nothing overlaps (DDP hides most of it behind the backward pass: this is the slow end)",
        "no waiting for data",
    )
    return "\n".join([*lines, "", f"Assumed: {'; '.join(assumptions)}."])
