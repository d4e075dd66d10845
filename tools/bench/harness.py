"""Compare variants of a training step: measured alternately, shown as one table.

    variants ─> round 1: A B C ..., round 2: A B C ..., ... ─> medians ─> table, speed targets

Variants alternate, so that other work on the machine slows down all of them alike. A matrix product
(GEMM) is one of them: its speed is the peak that steps are compared with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json

Step = Callable[[], object]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class StepBenchmark:
    """Options that the benchmarks of a training step have in common."""

    rounds: int = option(5, "times that every variant is measured; medians are shown", least=1)
    warmup: int = option(2, "steps of each variant before", unit="steps", least=0)
    gemm_size: int = option(2048, "side of the square matrices of the GEMM peak", least=1)
    threads: int = option(0, "threads on the CPU; 0 = torch's default", least=0)
    seed: int = option(0, "seed of data, weights, masks and dropout", least=0, most=MAX_SEED)
    out: str = option("", "JSON file for the same numbers", path=True)


@dataclass(frozen=True)
class Variant:
    """A step to call, and what it is."""

    step: Step
    samples: int
    precision: str  # fp32 or bf16: the GEMM peak that it is compared with
    compiled_from: str = ""  # name of the eager variant, whose FLOP a compiled one has too


@dataclass
class Measurement:
    """Medians of one variant; `ops` and `bytes` are unknown for compiled code."""

    name: str
    samples_per_second: float
    step_seconds: float
    processor_seconds: float  # of all threads; hardly depends on other work on the machine
    peak_share: float
    gflop: float
    ops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Measurements:
    """All variants in their order, and how the GEMM ran.

    `peak` is GFLOP/s by precision, `gemm_cpu_share` the part of its threads' time that it got.
    """

    rows: list[Measurement]
    peak: dict[str, float]
    gemm_cpu_share: float


@dataclass(frozen=True)
class SpeedTarget:
    """`variant` compared with `base`: how many times as fast at least, or as slow at most."""

    variant: str
    base: str
    value: float
    direction: str = "at least"


class OpCounter(TorchDispatchMode):
    """Counts ATen operations that are not views, and the bytes of their inputs and outputs.

    The bytes are an upper bound of memory traffic, since caches are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = (torch.ops.aten._unsafe_view, torch.ops.aten.detach)
        if not func.is_view and func.overloadpacket not in views:
            self.ops += 1
            self.bytes += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, out))
                if isinstance(leaf, Tensor)
            )
        return out


def run_benchmark(
    config: StepBenchmark,
    build_variants: Callable[[torch.device], dict[str, Variant]],
    title: str,
    unit: str,
    targets: Sequence[SpeedTarget],
) -> None:
    """Measure all variants, print the table, write the JSON file."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = default_device()
    measured = measure(
        build_variants(device),
        rounds=config.rounds,
        warmup=config.warmup,
        gemm_size=config.gemm_size,
        device=device,
    )
    print(markdown_table(measured, title, unit, targets, config.rounds, device))
    if config.out:
        content = {
            "config": asdict(config),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "gemm_gflops": measured.peak,
            "gemm_cpu_share": measured.gemm_cpu_share,
            "rows": [asdict(row) for row in measured.rows],
        }
        write_json(Path(config.out), content)


def measure(
    variants: dict[str, Variant], *, rounds: int, warmup: int, gemm_size: int, device: torch.device
) -> Measurements:
    """All variants, each `rounds` times, alternately."""
    # A product in bf16 takes 14 times as long where the device has none: only what is needed.
    precisions = {variant.precision for variant in variants.values()}
    gemm = {
        name: gemm_step(gemm_size, dtype, device)
        for name, dtype in DTYPES.items()
        if name in precisions
    }
    counted = {name: count_ops(v.step) for name, v in variants.items() if not v.compiled_from}
    steps = gemm | {name: variant.step for name, variant in variants.items()}
    for step in steps.values():
        for _ in range(warmup):
            step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(time_step(step, device))
    wall, processor = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()}
        for i in (0, 1)
    )
    peak = {name: 2e-9 * gemm_size**3 / wall[name] for name in gemm}
    rows = []
    for name, variant in variants.items():
        flop, ops, size = counted[variant.compiled_from or name]
        rows.append(
            Measurement(
                name=name,
                samples_per_second=variant.samples / wall[name],
                step_seconds=wall[name],
                processor_seconds=processor[name],
                peak_share=1e-9 * flop / wall[name] / peak[variant.precision],
                gflop=1e-9 * flop,
                ops=None if variant.compiled_from else ops,
                bytes=None if variant.compiled_from else size,
            )
        )
    used = sum(processor[name] for name in gemm) / sum(wall[name] for name in gemm)
    return Measurements(rows, peak, used / torch.get_num_threads())


def time_step(step: Step, device: torch.device) -> tuple[float, float]:
    """Seconds of one call: on the wall, and of all threads' processor time."""
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def gemm_step(size: int, dtype: torch.dtype, device: torch.device) -> Step:
    """A product of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        a @ b

    return multiply


def count_ops(step: Step) -> tuple[int, int, int]:
    """FLOP of a step's matrix products, and its operations that are not views with their bytes.

    Only of eager code: dispatch modes do not see inside compiled code.
    """
    with FlopCounterMode(display=False) as flop, OpCounter() as counter:
        step()
    return flop.get_total_flops(), counter.ops, counter.bytes


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, if it has one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def markdown_table(
    measured: Measurements,
    title: str,
    unit: str,
    targets: Sequence[SpeedTarget],
    rounds: int,
    device: torch.device,
) -> str:
    """A row a variant, then the speed targets and what was reached."""
    threads = f"CPU, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if device.type == "cuda" else threads
    peaks = ", ".join(f"{peak:.0f} GFLOP/s {name}" for name, peak in measured.peak.items())
    lines = [
        f"{title}, {where}, medians of {rounds} rounds. GEMM peak: {peaks}.",
        "",
        f"| step | {unit}/s | step, ms | processor, ms | of GEMM peak | GFLOP "
        "| ATen ops, no views | GB in and out of them, at most |",
        "|---|---|---|---|---|---|---|---|",
        *map(table_row, measured.rows),
        "",
    ]
    busy = device.type == "cpu" and measured.gemm_cpu_share < 0.8
    if busy:
        lines.append(
            f"Busy machine: the GEMM got {measured.gemm_cpu_share:.0%} of its threads' time. "
            "Trust only the processor times and their ratios.\n"
        )
    rows = {row.name: row for row in measured.rows}
    lines += [target_line(target, rows, busy) for target in targets]
    return "\n".join(lines)


def table_row(row: Measurement) -> str:
    """One variant's row of the table."""
    cells = (
        row.name,
        f"{row.samples_per_second:.4g}",
        f"{1e3 * row.step_seconds:.4g}",
        f"{1e3 * row.processor_seconds:.4g}",
        f"{row.peak_share:.0%}",
        f"{row.gflop:.4g}",
        "-" if row.ops is None else f"{row.ops:,}",
        "-" if row.bytes is None else f"{row.bytes * 1e-9:.3g}",
    )
    return f"| {' | '.join(cells)} |"


def target_line(target: SpeedTarget, rows: dict[str, Measurement], busy: bool) -> str:
    """Whether a target is met: by processor time on a `busy` machine, else by wall time."""
    a, b = rows[target.variant], rows[target.base]
    wall = a.samples_per_second / b.samples_per_second
    used = (a.step_seconds / a.processor_seconds) / (b.step_seconds / b.processor_seconds)
    processor, words = wall * used, "times as fast as"
    if target.direction == "at most":
        wall, processor, words = 1 / wall, 1 / processor, "times the step of"
    ratio = processor if busy else wall
    at_least = target.direction == "at least"
    met = ratio >= target.value if at_least else ratio <= target.value
    return (
        f"- {target.variant}: {wall:.2f} {words} {target.base} "
        f"({processor:.2f} by processor time); target: {target.direction} {target.value}, "
        + ("met" if met else "NOT met")
    )
