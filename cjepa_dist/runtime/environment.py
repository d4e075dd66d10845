"""Versions, code, command and machine: what a reader needs to repeat a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "webdataset",
    "numpy",
    "tensorboard",
    "submitit",
    "cjepa_dist",
)


def describe_environment(handle: Accelerator, engine: str, precision: str) -> dict[str, Any]:
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
        "commit": git_output("rev-parse", "HEAD"),
        "diff": git_output("diff", "HEAD", "--stat"),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name()
        if handle.device.type == "cuda"
        else platform.processor() or "cpu",
        "engine": engine,
        "processes": handle.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def git_output(*arguments: str) -> str:
    """Output of git in the project's folder; empty where there is no repository."""
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
