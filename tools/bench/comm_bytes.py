"""Bytes that processes send each other in a step, by engine: measured between real gloo processes.

    a run of FEW_STEPS, a run of MANY_STEPS ──> bytes on the loopback device `lo` during each
        ──> their difference a step: start, checkpoint and end cancel out

Anything else that talks over the loopback meanwhile is counted too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from tools.bench.child_process import run_module

FEW_STEPS, MANY_STEPS = 4, 24


def measure_comm_bytes(
    arguments: Sequence[str], engines: Sequence[str], run: Path, processes: int = 2
) -> dict[str, float]:
    """{engine: bytes a process sends a step} when a world model is trained with `arguments`.

    `run` is the run directory to use. Raises UserError with the error line of a run that fails.
    """
    found = {}
    for engine in engines:
        few, many = (
            bytes_sent([*arguments, f"loop.engine={engine}", f"run={run}"], run, processes, steps)
            for steps in (FEW_STEPS, MANY_STEPS)
        )
        found[engine] = (many - few) / (MANY_STEPS - FEW_STEPS) / processes
    return found


def bytes_sent(arguments: Sequence[str], run: Path, processes: int, steps: int) -> int:
    """Bytes sent over the loopback during a training of `steps` steps."""
    shutil.rmtree(run, ignore_errors=True)
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    run_module(
        "cjepa_dist.train_world_model",
        *arguments,
        f"loop.stop_at_step={steps}",
        processes=processes,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before


def comm_bytes_table(found: dict[str, float], weights: int) -> str:
    """Markdown; `weights` is the size of all weights in float32, in bytes."""
    lines = [
        "| engine, 2 processes, adamw | MB a process sends a step | times the weights |",
        "|---|---|---|",
    ]
    for name, size in found.items():
        lines.append(f"| {name} | {1e-6 * size:.3f} | {size / weights:.2f} |")
    return "\n".join(lines)
