"""How many GPUs a job has on its node: importing torch to count them takes seconds."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

# Slurm and users list the GPUs of a job there; an empty list, or -1, means none.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def count_gpus() -> int:
    """GPUs, or MIG slices, that this process may use, of NVIDIA's or of AMD's."""
    return min([nvidia_gpus() or amd_gpus(), *visible_gpus()])


def nvidia_gpus() -> int:
    """By the driver's nvidia-smi; a GPU that is cut into MIG slices counts as its slices."""
    try:
        command = ["nvidia-smi", "-L"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            gpus: list[int] = []  # slices of each
            for line in done.stdout.splitlines():
                if re.match(r"GPU \d", line):
                    gpus.append(0)
                elif gpus and re.match(r"\s+MIG ", line):
                    gpus[-1] += 1
            return sum(slices or 1 for slices in gpus)
    except (OSError, subprocess.TimeoutExpired):
        pass
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def amd_gpus(nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> int:
    """By the kernel's driver; CPUs are among its nodes, with 0 for a GPU's number."""
    count = 0
    for path in nodes.glob("*/gpu_id"):
        try:
            count += int(path.read_text() or 0) != 0
        except (OSError, ValueError):  # a GPU of another job may not be looked at
            continue
    return count


def visible_gpus() -> list[int]:
    """The lengths of the lists of GPUs that the environment holds."""
    lists = [os.environ[name] for name in VISIBLE if name in os.environ]
    return [sum(part.strip() not in ("", "-1") for part in text.split(",")) for text in lists]
