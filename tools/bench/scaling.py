"""A model of a data-parallel step on N H100s from counted FLOP and bytes. Nothing here is measured: every assumption is printed with it."""

from __future__ import annotations

from dataclasses import dataclass

from cjepa_dist.training.flops import PEAK_FLOPS

MFU = 0.4  # of dense bf16, when the batch is large enough to fill the GPU
LAUNCH_SECONDS = 10e-3  # seconds of an eager step that is all launches: some 1,500 kernels at 5 to 7 microseconds each
NVLINK, INFINIBAND = (
    360e9,
    40e9,
)  # bytes/s a GPU, each way: 80 % of NVLink 4's 450 GB/s and of 400 Gb/s InfiniBand
HOP_NVLINK, HOP_INFINIBAND = 3e-6, 10e-6  # seconds of latency a step of the ring
GPUS_PER_MACHINE = 8  # GPUs


@dataclass(frozen=True)
class StepCost:
    """FLOP of a step's forward and backward over the whole batch, bytes of the gradients, and measured seconds where it ran."""

    flop: int
    bytes: int
    seconds: float


def all_reduce_seconds(size: int, gpus: int) -> float:
    """A ring within each machine, then one between machines on each GPU's share (reduce-scatter, all-reduce, all-gather)."""
    local = min(gpus, GPUS_PER_MACHINE)
    machines = -(-gpus // GPUS_PER_MACHINE)
    inside = 2 * (local - 1) * (size / local / NVLINK + HOP_NVLINK)
    between = 2 * (machines - 1) * (size / local / machines / INFINIBAND + HOP_INFINIBAND)
    return inside + between


def predict_step_seconds(step: StepCost, gpus: int, *, whole: bool) -> tuple[float, float, float]:
    """Seconds (compute, all-reduce, step without overlap); `whole`: the batch is shared out, else every GPU has one of its own."""
    compute = max(LAUNCH_SECONDS, step.flop / (gpus if whole else 1) / (MFU * PEAK_FLOPS["H100"]))
    reduce = all_reduce_seconds(step.bytes, gpus)
    return compute, reduce, compute + reduce


def scaling_table(step: StepCost, gpus: list[int]) -> str:
    """Markdown: both ways of using more GPUs, then the assumptions."""
    lines = [
        "Model, not measured: a step on N H100s, 8 a machine.",
        "",
        "| GPUs | all-reduce, ms | same batch shared out: step, ms | times as fast | a batch each: step, ms | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    alone = predict_step_seconds(step, 1, whole=True)[2]
    for n in gpus:
        reduce, shared, each = (
            predict_step_seconds(step, n, whole=True)[1],
            predict_step_seconds(step, n, whole=True)[2],
            predict_step_seconds(step, n, whole=False)[2],
        )
        cells = (
            f"{1e3 * reduce:.3g}",
            f"{1e3 * shared:.4g}",
            f"{alone / shared:.2f}",
            f"{1e3 * each:.4g}",
            f"{alone / each:.0%}",
        )
        lines.append(f"| {n} | {' | '.join(cells)} |")
    bound = (
        "launches" if step.flop / (MFU * PEAK_FLOPS["H100"]) < LAUNCH_SECONDS else "matrix products"
    )
    assumed = (
        f"{MFU:.0%} of {1e-12 * PEAK_FLOPS['H100']:.0f} TFLOP/s bf16",
        f"no eager step below {1e3 * LAUNCH_SECONDS:.0f} ms of launches (alone it is bound by {bound})",
        f"gradients float32; a GPU has {1e-9 * NVLINK:.0f} GB/s NVLink within a machine, {1e-9 * INFINIBAND:.0f} GB/s InfiniBand beyond",
        f"{1e6 * HOP_NVLINK:.0f} and {1e6 * HOP_INFINIBAND:.0f} us a hop of the ring",
        "nothing overlaps (DDP hides most of it behind the backward pass: this is the slow end)",
        "data are never waited for",
    )
    return "\n".join([*lines, "", f"Assumed: {'; '.join(assumed)}."])
