"""Bytes that processes send each other in a step, by engine: measured on this machine's loopback, between real gloo processes.

    a run of FEW steps, a run of MANY ──> bytes on `lo` during each ──> their difference a step: start, checkpoint and end cancel out

Anything else that talks over the loopback meanwhile is counted too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from cjepa_dist.errors import UserError

FEW_STEPS, MANY_STEPS = 4, 24


def measure_comm_bytes(
    arguments: Sequence[str], engines: Sequence[str], run: Path, processes: int = 2
) -> dict[str, float]:
    """{engine: bytes a process sends a step} of a world model's training with `arguments`; `run` is a folder for its runs."""
    found = {}
    for engine in engines:
        few, many = (
            bytes_sent(arguments, engine, run, processes, steps)
            for steps in (FEW_STEPS, MANY_STEPS)
        )
        found[engine] = (many - few) / (MANY_STEPS - FEW_STEPS) / processes
    return found


def bytes_sent(arguments: Sequence[str], engine: str, run: Path, processes: int, steps: int) -> int:
    """Bytes sent over the loopback during a whole run of `steps`. Raises UserError with the last line of a run that fails."""
    shutil.rmtree(run, ignore_errors=True)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    command = [
        *launcher,
        "-m",
        "cjepa_dist.train_world_model",
        *arguments,
        f"loop.engine={engine}",
        f"loop.stop_at_step={steps}",
        f"run={run}",
    ]
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("error: ")
        ] or done.stderr.splitlines()[-1:]
        raise UserError(f"engine {engine}: {' '.join(lines)}")
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before


def comm_bytes_table(found: dict[str, float], weights: int) -> str:
    """Markdown; `weights` are the bytes of all weights in float32."""
    lines = [
        "| engine, 2 processes, adamw | MB a process sends a step | times the weights |",
        "|---|---|---|",
    ]
    return "\n".join(
        [
            *lines,
            *(
                f"| {name} | {1e-6 * size:.3f} | {size / weights:.2f} |"
                for name, size in found.items()
            ),
        ]
    )
