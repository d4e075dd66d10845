"""One training step of C-JEPA, rung by rung: the published one in float32, then ours, on the same batch.

    rungs ──> round 1: A B C ..., round 2: A B C ..., ... ──> medians ──> table

Every step is forward, loss, backward, update. The rungs take turns, so a busy machine harms all alike; the GEMM peak takes its turn too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cjepa_dist import config as schema
from cjepa_dist.config import PredictorConfig, TrainWorldModel, option
from cjepa_dist.tasks import WorldModelTask
from cjepa_dist.training.optimizer import optimizers
from tools.bench.reference import ReferenceStep

Step = Callable[[], None]
LATE = 0.9  # part of the run behind us: every term has its full weight
REFERENCE, REFERENCE_CTT = "published, fp32", "published + CTT, fp32"
BASE, OURS_CTT = "ours, bf16", "ours + published CTT, bf16"
ATTENTION, QUARTER = "ours + CTT `attention`, bf16", "ours + CTT `attention` on 1/4, bf16"
# (rung, what it is compared with, aim, "at least" or "at most", unit): times a speed, or times a step's duration
AIMS = (
    (BASE, REFERENCE, 3.0, "at least", "times as fast as"),
    (OURS_CTT, REFERENCE_CTT, 3.0, "at least", "times as fast as"),
    (ATTENTION, BASE, 3.2, "at most", "times the step of"),
    (QUARTER, BASE, 1.6, "at most", "times the step of"),
)


@dataclass
class BenchWorldModel:
    """Speed of one training step of the world model: the published one, and ours."""

    batch: int = option(256, "windows a step", unit="windows", least=2)
    hidden: int = option(2, "slots hidden in every window", unit="slots", least=0)
    rounds: int = option(5, "times that every rung is measured; medians are shown", least=1)
    warmup: int = option(2, "steps of each rung before", unit="steps", least=0)
    gemm: int = option(2048, "side of the square matrices of the GEMM peak", least=1)
    threads: int = option(0, "threads on the CPU; 0 = torch's own number", least=0)
    compile: bool = option(False, "also ours under torch.compile")
    seed: int = option(0, "seed of weights, slots, masks, dropout")
    out: str = option("", "JSON file for the same numbers")
    predictor: PredictorConfig = option(PredictorConfig, "the model; defaults are the released layout")


@dataclass
class Row:
    """What was measured of one rung; `ops` and `bytes` are unknown for compiled code."""

    name: str
    windows_per_second: float
    step_seconds: float
    processor_seconds: float  # of all threads: hardly depends on what else the machine does
    peak_share: float
    gflop: float
    ops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Rung:
    """A step to call, and what it is."""

    step: Step
    precision: str  # fp32 or bf16: of which GEMM peak its share is
    compiled: bool = False


class Traffic(TorchDispatchMode):
    """Counts ATen operations that are not views, and the bytes of their tensors, in and out: an upper bound, since caches are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in (torch.ops.aten._unsafe_view, torch.ops.aten.detach):
            self.ops += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out


def main(config: BenchWorldModel) -> None:
    """Measure all rungs and print the table."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, peak, held = measure(config, build(config, device), device)
    print(table(config, rows, peak, held, device))
    if config.out:
        content = {"config": asdict(config), "device": str(device), "threads": torch.get_num_threads(), "gemm_gflops": peak, "held": held}
        Path(config.out).write_text(json.dumps({**content, "rows": [asdict(row) for row in rows]}, indent=1))


def build(config: BenchWorldModel, device: torch.device) -> dict[str, Rung]:
    """The rungs by name, in the table's order."""
    torch.manual_seed(config.seed)
    model = config.predictor
    shape = (config.batch, model.history_frames + model.pred_frames, model.slots, model.slot_dim)
    slots = torch.randn(shape, device=device)
    batch = {
        "slots": slots,
        "present": torch.ones(shape[:3], dtype=torch.bool, device=device),
        "sample": torch.arange(config.batch, device=device),
    }

    def published(causal: bool) -> Rung:
        return Rung(ReferenceStep(model, slots, masked=config.hidden, causal=causal), "fp32")

    def ours(kind: str = "", *, estimator: str = "attention", fraction: float = 1.0, precision: str = "bf16", code: str = "eager") -> Rung:
        weight = {"weight": 0.1 if kind else 0.0, "ramp": 0.0}
        causal = {"invariance": weight, "sufficiency": weight, "fraction": fraction, "graph": {"estimator": estimator}}
        step = OurStep(config, batch, precision, {**causal, "kind": kind or "per_sample"}, code == "compiled")
        return Rung(step, precision, step.compiled)

    rungs = {
        REFERENCE: published(causal=False),
        "ours, fp32": ours(precision="fp32"),
        BASE: ours(),
        REFERENCE_CTT: published(causal=True),
        OURS_CTT: ours("published"),
        ATTENTION: ours("per_sample"),
        QUARTER: ours("per_sample", fraction=0.25),
        "ours + CTT `interventional` on 1/4, bf16": ours("per_sample", estimator="interventional", fraction=0.25),
    }
    if config.compile:
        rungs["ours compiled, bf16"] = ours(code="compiled")
    return rungs


class OurStep:
    """What `training/loop.py` does in a step, one call a step."""

    def __init__(self, config: BenchWorldModel, batch: dict[str, Tensor], precision: str, causal: dict, compiled: bool) -> None:
        torch.manual_seed(config.seed)
        hidden = min(config.hidden, config.predictor.slots)
        full = schema.build(
            TrainWorldModel,
            {
                "data": "none", "run": "none", "seed": config.seed, "predictor": asdict(config.predictor), "ctt": causal,
                "mask": {"mode": "sample", "counts": [0.0] * hidden + [1.0]}, "loop": {"global_batch": config.batch},
            },
        )  # fmt: skip
        device = batch["slots"].device
        self.task = WorldModelTask(full).to(device)
        self.forward = torch.compile(self.task) if compiled else self.task
        self.optimizers = optimizers(self.task, full.optimizer)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.batch, self.compiled, self.step = batch, compiled, 0

    def __call__(self) -> None:
        with self.autocast:
            outcome = self.forward(self.batch, self.step, LATE)
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), float("inf"), foreach=True)
        for part in self.optimizers:
            part.step()
            part.zero_grad(set_to_none=True)
        self.task.update(outcome.statistics)
        self.step += 0 if self.compiled else 1  # a new number would be a new graph


def measure(config: BenchWorldModel, rungs: dict[str, Rung], device: torch.device) -> tuple[list[Row], dict[str, float], float]:
    """Rows in the order of the rungs, the GEMM peak in GFLOP/s by precision, the share of its threads' time that it had: medians."""

    def clock(step: Step) -> tuple[float, float]:
        synchronise(device)
        wall, processor = time.perf_counter(), time.process_time()
        step()
        synchronise(device)
        return time.perf_counter() - wall, time.process_time() - processor

    gemm = {name: square(config.gemm, dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    counted = {name: count(rung.step) for name, rung in rungs.items() if not rung.compiled}
    turns = gemm | {name: rung.step for name, rung in rungs.items()}
    for step in turns.values():
        for _ in range(config.warmup):
            step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(config.rounds):
        for name, step in turns.items():
            times[name].append(clock(step))
    wall, processor = ({name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()} for i in (0, 1))
    peak = {name: 2e-9 * config.gemm**3 / wall[name] for name in gemm}
    rows = []
    for name, rung in rungs.items():
        flop, ops, size = counted.get(name, (counted[BASE][0], None, None))
        share = 1e-9 * flop / wall[name] / peak[rung.precision]
        rows.append(Row(name, config.batch / wall[name], wall[name], processor[name], share, 1e-9 * flop, ops, size))
    held = sum(processor[name] for name in gemm) / sum(wall[name] for name in gemm) / torch.get_num_threads()
    return rows, peak, held


def square(side: int, dtype: torch.dtype, device: torch.device) -> Step:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        a @ b

    return multiply


def count(step: Step) -> tuple[int, int, int]:
    """FLOP of the matrix products of a step, its operations that are not views, their bytes. Modes see nothing of compiled code."""
    with FlopCounterMode(display=False) as flop, Traffic() as traffic:
        step()
    return flop.get_total_flops(), traffic.ops, traffic.bytes


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(config: BenchWorldModel, rows: list[Row], peak: dict[str, float], held: float, device: torch.device) -> str:
    """Markdown: a row a rung, then the aims and what was reached."""
    model = config.predictor
    tokens = (model.history_frames + model.pred_frames) * model.slots
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"World model, one training step: batch {config.batch}, {tokens} tokens, dropout {model.dropout}, {where}, "
        f"medians of {config.rounds} rounds. GEMM peak: {peak['fp32']:.0f} GFLOP/s fp32, {peak['bf16']:.0f} bf16.",
        "",
        "| step | windows/s | step, ms | processor, ms | of GEMM peak | GFLOP | ATen ops, no views | GB in and out of them, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ops, size = ("-", "-") if r.ops is None or r.bytes is None else (f"{r.ops:,}", f"{r.bytes * 1e-9:.3g}")
        lines.append(
            f"| {r.name} | {r.windows_per_second:.4g} | {1e3 * r.step_seconds:.4g} | {1e3 * r.processor_seconds:.4g} "
            f"| {r.peak_share:.0%} | {r.gflop:.4g} | {ops} | {size} |"
        )
    by_name = {row.name: row for row in rows}
    lines.append("")
    busy = device.type == "cpu" and held < 0.8
    if busy:
        lines.append(f"Busy machine: the GEMM had {held:.0%} of its threads' time. Trust the processor times and their ratios only.\n")
    for name, base, aim, direction, words in AIMS:
        wall = by_name[name].step_seconds / by_name[base].step_seconds
        processor = by_name[name].processor_seconds / by_name[base].processor_seconds
        if direction == "at least":
            wall, processor = 1 / wall, 1 / processor
        found = processor if busy else wall
        met = "met" if (found >= aim if direction == "at least" else found <= aim) else "NOT met"
        lines.append(f"- {name}: {wall:.2f} {words} {base} ({processor:.2f} by processor time); aim: {direction} {aim}, {met}")
    return "\n".join(lines)
