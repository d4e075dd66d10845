"""The command line of one command of a job: plain Python for one process, torchrun over the nodes and processes of the job for more."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from slurm.jobs.slurm_command import run_slurm_command


def build_argv(
    command: list[str], *, processes: int, grace: int, job: str, restart: int, node: int, nodes: int
) -> list[str]:
    """The command line: plain Python for one process, torchrun for more, with a rendezvous that no earlier start of the job shares."""
    world = processes * nodes
    module, *arguments = command
    if is_training(module):
        arguments = [*arguments, f"loop.num_processes={world}"]
    elif module != "slurm.jobs.preflight_worker":
        return [sys.executable, "-u", "-m", module, *arguments]
    if world == 1 and is_training(module):
        return [sys.executable, "-u", "-m", module, *arguments]
    if nodes == 1:
        meet = ["--standalone"]
    else:
        head = run_slurm_command(
            "scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]
        ).split()[0]
        port = 20000 + int(job) % 20000
        meet = [
            f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={head}:{port}", f"--rdzv-id={job}.{restart}",
            f"--rdzv-conf=is_host={int(node == 0)}", f"--local-addr={os.environ.get('SLURMD_NODENAME', socket.gethostname())}",
        ]  # fmt: skip
    launcher = [
        "-m",
        "torch.distributed.run",
        *meet,
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
    ]
    return [sys.executable, *launcher, f"--shutdown-timeout={grace}", "-m", module, *arguments]


def is_training(module: str) -> bool:
    return module.rpartition(".")[2].startswith("train_")


def run_dir_of(command: list[str]) -> Path | None:
    """The run folder of a training command."""
    if not is_training(command[0]):
        return None
    return next(
        (Path(part.removeprefix("run=")) for part in command if part.startswith("run=")), None
    )
