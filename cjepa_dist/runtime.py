"""What this process runs on: accelerator, device, precision, threads, seeds, and a report of it all."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

PACKAGES = ("torch", "accelerate", "deepspeed", "webdataset", "numpy", "tensorboard", "submitit", "cjepa_dist")


def accelerator(precision: str, **plugins: Any) -> Accelerator:
    """The Accelerate handle of this process; `plugins` as Accelerator takes them (training/engine.py)."""
    on_cpu = not torch.cuda.is_available()
    # With cpu=True Accelerate leaves plugins out, in silence; without it and without a GPU it takes the CPU all the same.
    handle = Accelerator(cpu=on_cpu and not plugins, mixed_precision="bf16" if precision == "bf16" else "no", **plugins)
    if on_cpu:
        keep_freed_memory()
        # accelerate launch sets OMP_NUM_THREADS=1 without being asked: share the cores between the local processes.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(handle.num_processes)))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    return handle


def device() -> torch.device:
    """The GPU if there is one, else the CPU: of programs that run in one process."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Freed blocks stay with this process, where the C library is glibc and MALLOC_MMAP_THRESHOLD_ is not set.

    By default a large block goes back to the kernel, which zeroes its pages when they are asked for again, in the next step: half of the
    processor time of an ALOE step of 96 questions (measured: 22 s of 43). mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt, mmap_threshold, trim_threshold = ctypes.CDLL(None).mallopt, -3, -1
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


@cache
def native_precision() -> str:
    """bf16 where the device multiplies it itself, else fp32: a CPU that does not is ten times slower in it than in float32.

    Measured on one with AVX2 alone: 2.4 GFLOP/s in bf16, 33 in float32; with AMX it is 408 to 192.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(words) else "fp32"  # x86, x86, Arm


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, without gradient; the tensor itself on one process, and where it is a meta tensor, which has no values."""
    values = values.detach()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and not values.is_meta:
        values = values.clone()
        dist.all_reduce(values)
    return values


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded: then all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_error(mine: str | None, group: dist.ProcessGroup | None = None) -> str | None:
    """The message of the first rank that has one. All ranks call it, so that they fail together instead of waiting for one that did.

    `group`: of all ranks, for a thread that must not use the default one.
    """
    if world_size() == 1:
        return mine
    found: list[str | None] = [None] * world_size()
    dist.all_gather_object(found, mine, group=group)
    return next((text for text in found if text is not None), None)


def gloo_backends(*groups: dist.ProcessGroup | None) -> list[Any]:
    """The gloo parts of the default group and of `groups`; empty on one process."""
    if world_size() == 1:
        return []
    found = [group for group in (dist.group.WORLD, *groups) if group is not None and "cpu:gloo" in dist.get_backend_config(group)]
    return [group._get_backend(torch.device("cpu")) for group in found]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mix(*numbers: int) -> int:
    """A seed that depends on all of the numbers (splitmix64 steps), for torch.manual_seed."""
    state = 0
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def environment(handle: Accelerator, engine: str, precision: str) -> dict[str, Any]:
    """What a reader of the run folder needs to repeat the run: versions, code, command, machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *getattr(sys, "orig_argv", sys.argv)[1:]],
        "python": platform.python_version(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "diff": git("diff", "HEAD", "--stat"),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if handle.device.type == "cuda" else platform.processor() or "cpu",
        "engine": engine,
        "processes": handle.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def git(*arguments: str) -> str:
    """Output of git in the project's folder; empty where there is no repository."""
    folder = Path(__file__).resolve().parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()
