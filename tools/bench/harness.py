"""Training steps beside each other: measured in turns, and as one table.

    rungs ──> round 1: A B C ..., round 2: A B C ..., ... ──> medians ──> table, aims

The rungs take turns, so a busy machine harms all alike; the GEMM peak takes its turn too.
"""

from __future__ import annotations

import json
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

Step = Callable[[], object]


@dataclass
class Measurement:
    """What was measured of one rung; `ops` and `bytes` are unknown for compiled code."""

    name: str
    samples_per_second: float
    step_seconds: float
    processor_seconds: float  # of all threads: hardly depends on what else the machine does
    peak_share: float
    gflop: float
    ops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Variant:
    """A step to call, and what it is."""

    step: Step
    samples: int
    precision: str  # fp32 or bf16: of which GEMM peak its share is
    compiled: bool = False
    of: str = ""  # the rung that a compiled one is the compiled form of: its FLOP are counted there


@dataclass(frozen=True)
class Timing:
    """How often each rung is measured, after how many steps, and the side of the GEMM peak's matrices."""

    rounds: int
    warmup: int
    gemm: int


@dataclass(frozen=True)
class Measurements:
    """Medians: rows in the order of the rungs, the GEMM peak in GFLOP/s by precision, the share of its threads' time that it had."""

    rows: list[Measurement]
    peak: dict[str, float]
    held: float


@dataclass(frozen=True)
class SpeedTarget:
    """`rung` compared with `base`: times a speed ("at least"), or times a step's duration ("at most")."""

    rung: str
    base: str
    value: float
    direction: str = "at least"


class OpCounter(TorchDispatchMode):
    """Counts ATen operations that are not views, and the bytes of their tensors, in and out: an upper bound, since caches are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in (
            torch.ops.aten._unsafe_view,
            torch.ops.aten.detach,
        ):
            self.ops += 1
            self.bytes += sum(
                t.numel() * t.element_size()
                for t in tree_leaves((args, kwargs, out))
                if isinstance(t, Tensor)
            )
        return out


def measure(rungs: dict[str, Variant], turns: Timing, device: torch.device) -> Measurements:
    """All rungs, each `turns.rounds` times in turn."""

    def clock(step: Step) -> tuple[float, float]:
        synchronize(device)
        wall, processor = time.perf_counter(), time.process_time()
        step()
        synchronize(device)
        return time.perf_counter() - wall, time.process_time() - processor

    used = {
        rung.precision for rung in rungs.values()
    }  # a product in bf16 takes 14 times as long where the device has none
    gemm = {
        name: gemm_step(turns.gemm, dtype, device)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        if name in used
    }
    counted = {name: count_ops(rung.step) for name, rung in rungs.items() if not rung.compiled}
    steps = gemm | {name: rung.step for name, rung in rungs.items()}
    for step in steps.values():
        for _ in range(turns.warmup):
            step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(turns.rounds):
        for name, step in steps.items():
            times[name].append(clock(step))
    wall, processor = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()}
        for i in (0, 1)
    )
    peak = {name: 2e-9 * turns.gemm**3 / wall[name] for name in gemm}
    rows = []
    for name, rung in rungs.items():
        flop, ops, size = counted[name] if not rung.compiled else (counted[rung.of][0], None, None)
        share = 1e-9 * flop / wall[name] / peak[rung.precision]
        rows.append(
            Measurement(
                name,
                rung.samples / wall[name],
                wall[name],
                processor[name],
                share,
                1e-9 * flop,
                ops,
                size,
            )
        )
    held = (
        sum(processor[name] for name in gemm)
        / sum(wall[name] for name in gemm)
        / torch.get_num_threads()
    )
    return Measurements(rows, peak, held)


def gemm_step(side: int, dtype: torch.dtype, device: torch.device) -> Step:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        a @ b

    return multiply


def count_ops(step: Step) -> tuple[int, int, int]:
    """FLOP of the matrix products of a step, its operations that are not views, their bytes. Modes see nothing of compiled code."""
    with FlopCounterMode(display=False) as flop, OpCounter() as traffic:
        step()
    return flop.get_total_flops(), traffic.ops, traffic.bytes


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def markdown_table(
    measured: Measurements,
    what: str,
    unit: str,
    aims: Sequence[SpeedTarget],
    rounds: int,
    device: torch.device,
) -> str:
    """Markdown: a row a rung, then the aims and what was reached."""
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    peaks = ", ".join(f"{peak:.0f} GFLOP/s {name}" for name, peak in measured.peak.items())
    lines = [
        f"{what}, {where}, medians of {rounds} rounds. GEMM peak: {peaks}.",
        "",
        f"| step | {unit}/s | step, ms | processor, ms | of GEMM peak | GFLOP | ATen ops, no views | GB in and out of them, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in measured.rows:
        ops, size = (
            ("-", "-")
            if r.ops is None or r.bytes is None
            else (f"{r.ops:,}", f"{r.bytes * 1e-9:.3g}")
        )
        lines.append(
            f"| {r.name} | {r.samples_per_second:.4g} | {1e3 * r.step_seconds:.4g} | {1e3 * r.processor_seconds:.4g} "
            f"| {r.peak_share:.0%} | {r.gflop:.4g} | {ops} | {size} |"
        )
    by_name = {row.name: row for row in measured.rows}
    lines.append("")
    busy = device.type == "cpu" and measured.held < 0.8
    if busy:
        lines.append(
            f"Busy machine: the GEMM had {measured.held:.0%} of its threads' time. Trust the processor times and their ratios only.\n"
        )
    for aim in aims:
        a, b = by_name[aim.rung], by_name[aim.base]
        wall = a.samples_per_second / b.samples_per_second
        processor = (
            wall * (a.step_seconds / a.processor_seconds) / (b.step_seconds / b.processor_seconds)
        )
        words = "times as fast as"
        if aim.direction == "at most":
            wall, processor, words = 1 / wall, 1 / processor, "times the step of"
        found = processor if busy else wall
        met = (
            "met"
            if (found >= aim.value if aim.direction == "at least" else found <= aim.value)
            else "NOT met"
        )
        lines.append(
            f"- {aim.rung}: {wall:.2f} {words} {aim.base} ({processor:.2f} by processor time); aim: {aim.direction} {aim.value}, {met}"
        )
    return "\n".join(lines)


def save_json(measured: Measurements, config: Any, device: torch.device) -> None:
    """The same numbers as JSON, where `config.out` names a file."""
    if config.out:
        content = {
            "config": asdict(config),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "gemm_gflops": measured.peak,
        }
        rows = [asdict(row) for row in measured.rows]
        Path(config.out).write_text(
            json.dumps({**content, "held": measured.held, "rows": rows}, indent=1)
        )
