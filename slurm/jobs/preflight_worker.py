"""What one process of the pre-flight does; `python -m slurm.preflight` starts it under torchrun.

    its GPU ──> a token in RUNS, written by rank 0, read by all ranks
            ──> all-reduce, checked and timed ──> RUNS/preflight.json

The first fault ends all ranks with one line: what is wrong, and on which node.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.collectives import first_error
from cjepa_dist.runtime.files import write_json

ALL_REDUCE_MEGABYTES = {"cuda": 256, "cpu": 16}
ROUNDS = 5


@dataclass
class PreflightWorker:
    """Check the nodes of this job from inside."""

    runs: str = option(MISSING, "the folder that all nodes must share", path=True)
    gpus: int = option(0, "GPUs that each node must have", unit="GPUs", least=0)
    wait: float = option(
        30.0,
        "time for a file to be seen on other nodes",
        unit="seconds",
        least=0.0,
        most=1e6,
    )


def main(config: PreflightWorker) -> int:
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    runs, device = Path(config.runs), torch.device("cpu")
    raise_on_all_ranks(gpu_fault(config.gpus))
    raise_on_all_ranks(shared_folder_fault(runs, config.wait))
    if config.gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    bandwidth = all_reduce_bandwidth(device)
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    if dist.get_rank() == 0:
        found = {
            "processes": len(hosts),
            "nodes": sorted(set(hosts)),
            "device": torch.cuda.get_device_name(device) if config.gpus else "cpu",
            "all_reduce_megabytes": ALL_REDUCE_MEGABYTES[device.type],
            "all_reduce_gb_per_s": round(bandwidth, 3),
        }
        write_json(runs / "preflight.json", found)
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def raise_on_all_ranks(fault: str | None) -> None:
    """Raises UserError on all ranks if one of them has found a fault."""
    if first := first_error(fault):
        raise UserError(first)


def gpu_fault(gpus: int) -> str | None:
    """What is wrong with this rank's GPU."""
    if not gpus:
        return None
    host, local_rank = socket.gethostname(), int(os.environ["LOCAL_RANK"])
    visible = torch.cuda.device_count()
    if visible != gpus:
        cause = "a CPU build of torch"
        if torch.version.cuda:
            cause = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
        return (
            f"{host} shows {visible} GPUs to its processes, gpus_per_node says {gpus} ({cause}):"
            " see nvidia-smi -L there"
        )
    try:
        ones = torch.ones(64, 64, device=f"cuda:{local_rank}")
        right = (ones @ ones).sum().item() == 64**3
    except RuntimeError as error:
        return f"{host}: GPU {local_rank} cannot be used: {str(error).splitlines()[0]}"
    return None if right else f"{host}: GPU {local_rank} computes wrong sums"


def shared_folder_fault(runs: Path, wait: float) -> str | None:
    """Rank 0 writes a token where all ranks must find it within `wait` seconds."""
    token = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    path, fault = runs / f".preflight_{token[0]}", None
    if dist.get_rank() == 0:
        try:
            path.write_text(token[0])
        except OSError as error:
            fault = f"{socket.gethostname()} cannot write to {runs}: {error.strerror}"
    raise_on_all_ranks(fault)
    end = time.monotonic() + wait
    while not (seen := holds_token(path, token[0])) and time.monotonic() < end:
        time.sleep(0.2)
    dist.barrier()
    if dist.get_rank() == 0:
        path.unlink(missing_ok=True)
    writer = [socket.gethostname()]
    dist.broadcast_object_list(writer, src=0)
    if seen:
        return None
    return (
        f"{runs} is not shared: what {writer[0]} writes there, {socket.gethostname()} does not"
        f" see after {wait:g} s"
    )


def holds_token(path: Path, token: str) -> bool:
    try:
        return path.read_text() == token
    except OSError:
        return False


def all_reduce_bandwidth(device: torch.device) -> float:
    """GB/s, the best of ROUNDS: each process sends 2 (n - 1) / n bytes for each byte.

    Raises UserError for a wrong sum.
    """
    world_size = dist.get_world_size()
    group = dist.new_group(backend="nccl") if device.type == "cuda" else dist.group.WORLD
    values = torch.empty(ALL_REDUCE_MEGABYTES[device.type] * 2**20 // 4, device=device)
    best, fault = float("inf"), None
    for _ in range(ROUNDS + 1):  # the first one is warm-up
        values.fill_(dist.get_rank())
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
        if not torch.all(values == world_size * (world_size - 1) / 2):
            fault = f"{socket.gethostname()}: an all-reduce gave a wrong sum"
    raise_on_all_ranks(fault)
    return 2 * (world_size - 1) / world_size * values.numel() * 4 / best / 1e9


if __name__ == "__main__":
    command_line.launch(PreflightWorker, main)
