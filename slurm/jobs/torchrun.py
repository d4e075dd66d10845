"""The argv of one command of a job: python for one process, torchrun for several."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from slurm.jobs.slurm_command import run_slurm_command
from slurm.jobs.spec import SlurmContext


def build_argv(command: list[str], *, processes: int, context: SlurmContext) -> list[str]:
    """`processes` on each node; commands that do not train run as one process.

    The training loop is told how many processes there must be: a launcher may start fewer.
    """
    module, *arguments = command
    world_size = processes * context.num_nodes
    python = [sys.executable, "-u"]
    if is_training(module):
        arguments = [*arguments, f"loop.num_processes={world_size}"]
        distributed = world_size > 1
    else:
        distributed = module == "slurm.jobs.preflight_worker"
    if not distributed:
        return [*python, "-m", module, *arguments]
    torchrun = [
        *("-m", "torch.distributed.run"),
        *rendezvous(context),
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
    ]
    return [sys.executable, *torchrun, "-m", module, *arguments]


def rendezvous(context: SlurmContext) -> list[str]:
    """torchrun's options by which the nodes find each other; its id is new at every start."""
    if context.num_nodes == 1:
        return ["--standalone"]
    hosts = run_slurm_command(
        *("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]), attempts=3
    )
    # Below 32768, where the kernel begins to give ports to others.
    port = 20000 + int(context.job_id) % 12000
    address = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return [
        f"--nnodes={context.num_nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={hosts.split()[0]}:{port}",
        f"--rdzv-id={context.job_id}.{context.restart_count}",
        f"--rdzv-conf=is_host={int(context.node_rank == 0)}",
        f"--local-addr={address}",
    ]


def is_training(module: str) -> bool:
    return module.rpartition(".")[2].startswith("train_")


def run_dir_of(command: list[str]) -> Path | None:
    """The run directory of a training command; None for other commands."""
    if not is_training(command[0]):
        return None
    prefix = "run="
    found = (Path(part.removeprefix(prefix)) for part in command if part.startswith(prefix))
    return next(found, None)
