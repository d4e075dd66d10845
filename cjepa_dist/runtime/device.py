"""The device of this process: accelerator, precision, threads and memory."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cjepa_dist.runtime.environment import read_int


def make_accelerator(precision: str, **plugins: Any) -> Accelerator:
    """The Accelerate handle of this process; `plugins` are arguments of Accelerator."""
    on_cpu = not torch.cuda.is_available()
    # With cpu=True Accelerate silently ignores plugins; without a GPU it uses the CPU anyway.
    handle = Accelerator(
        cpu=on_cpu and not plugins,
        mixed_precision="bf16" if precision == "bf16" else "no",
        **plugins,
    )
    if on_cpu:
        keep_freed_memory()
        # accelerate launch sets OMP_NUM_THREADS=1 by itself: share the cores of this machine
        # between its processes instead.
        local = read_int("LOCAL_WORLD_SIZE", handle.num_processes, least=1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    return handle


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU; for programs of one process."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of returning it to the kernel.

    By default glibc returns large blocks, and the kernel zeroes their pages when the next step
    asks for them again. That was half of the CPU time of an ALOE step of 96 questions (22 s of
    43). Does nothing with another C library, or where MALLOC_MMAP_THRESHOLD_ is set. See
    mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt, mmap_threshold, trim_threshold = ctypes.CDLL(None).mallopt, -3, -1
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


@cache
def native_precision() -> str:
    """bf16 where the device has instructions for it, else fp32.

    A CPU without them is ten times slower in bf16. Measured with AVX2 alone: 2.4 GFLOP/s in bf16,
    33 in float32; with AMX: 408 and 192.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(words) else "fp32"  # x86, x86, Arm
