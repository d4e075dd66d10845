"""How a run was made, kept in its folder beside what `runtime.environment` finds out:

given.yaml      the CONFIG.yaml as it was, and the key=value as typed, of the first start
command.txt     for every start: its time, commit and diff as a comment, then the command, to be run again as it stands
code.diff       the code's difference from that commit (git diff HEAD); absent where there is none. Later: code.2.diff ...
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from cjepa_dist.runtime.clock import timestamp
from cjepa_dist.runtime.files import write_text_atomic


def write_provenance(run: Path) -> None:
    """Add this start to `run`'s record; rank 0 calls it. Earlier starts stay."""
    given = run / "given.yaml"
    if not given.exists():
        write_text_atomic(given, given_config(sys.argv[1:]))
    commit = git_output("rev-parse", "HEAD") or "unknown"
    note = f"# {timestamp()} commit {commit}{write_code_diff(run)}"
    with (run / "command.txt").open("a") as stream:
        stream.write(f"{note}\n{command()}\n")


def given_config(arguments: list[str]) -> str:
    """The text of the YAML file among `arguments`, if there is one, then the key=value as comments."""
    files = [
        Path(each) for each in arguments if "=" not in each and each.endswith((".yaml", ".yml"))
    ]
    text = "".join(f"# {path}\n{path.read_text().rstrip()}\n" for path in files if path.is_file())
    return text + "".join(f"# {each}\n" for each in arguments if "=" in each)


def command() -> str:
    """One line for a shell: the folder, and the launcher's command where a launcher started this process, else its own."""
    own = [sys.executable, *getattr(sys, "orig_argv", sys.argv)[1:]]
    if {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        try:
            above = psutil.Process().parent()
            line = above.cmdline() if above is not None else []
        except psutil.Error:
            line = []
        if set(sys.argv[1:]) <= set(line):  # the launcher itself, not something that stands between
            own = line
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(own)}"


def write_code_diff(run: Path) -> str:
    """Write the code's difference from its commit unless an earlier start had the same; returns `, FILE` or nothing where it is clean."""
    done = subprocess.run(
        ["git", "diff", "HEAD"], cwd=Path(__file__).parent, capture_output=True, check=False
    )
    if not done.stdout:
        return ""
    number = 1
    while (path := run / ("code.diff" if number == 1 else f"code.{number}.diff")).exists():
        if path.read_bytes() == done.stdout:
            break
        number += 1
    else:
        path.write_bytes(done.stdout)
    return f", {path.name}"


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
