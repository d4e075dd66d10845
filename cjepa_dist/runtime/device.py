"""What this process runs on: accelerator, device, precision, threads, seeds, and a report of it all."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


def make_accelerator(precision: str, **plugins: Any) -> Accelerator:
    """The Accelerate handle of this process; `plugins` as Accelerator takes them (engines/base.py)."""
    on_cpu = not torch.cuda.is_available()
    # With cpu=True Accelerate leaves plugins out, in silence; without it and without a GPU it takes the CPU all the same.
    handle = Accelerator(
        cpu=on_cpu and not plugins,
        mixed_precision="bf16" if precision == "bf16" else "no",
        **plugins,
    )
    if on_cpu:
        keep_freed_memory()
        # accelerate launch sets OMP_NUM_THREADS=1 without being asked: share the cores between the local processes.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(handle.num_processes)))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    return handle


def default_device() -> torch.device:
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
