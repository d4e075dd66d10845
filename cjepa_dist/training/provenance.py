"""How a run was made: the records in its directory that let a reader repeat it.

environment.json   versions, commit, command, machine, device, number of processes
given.yaml         CONFIG.yaml as it was and the key=value as typed, at the first start
command.txt        for every start: time, commit and diff as a comment, then the command, which can
                   be run as it stands
code.diff          the difference of the code from that commit (git diff HEAD), absent if there is
                   none; of later starts code.2.diff ...
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from cjepa_dist.config import locate
from cjepa_dist.config.command_line import split_arguments
from cjepa_dist.errors import without_secrets
from cjepa_dist.runtime.clock import timestamp
from cjepa_dist.runtime.files import write_json, write_text_atomic

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


def write_provenance(run_dir: Path, environment: dict[str, Any]) -> None:
    """Add this start to the records of `run_dir`; rank zero calls it. Earlier starts stay."""
    write_json(run_dir / "environment.json", environment)
    given = run_dir / "given.yaml"
    if not given.exists():
        write_text_atomic(given, given_config(sys.argv[1:]))
    commit = git_output("rev-parse", "HEAD") or "unknown"
    diff = write_code_diff(run_dir)
    note = f"# {timestamp()} commit {commit}" + (f", {diff}" if diff else "")
    # A file name need not be text in any encoding.
    with (run_dir / "command.txt").open("a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(f"{note}\n{without_secrets(shell_command())}\n")


def describe_environment(accelerator: Accelerator, engine: str, precision: str) -> dict[str, Any]:
    """The content of environment.json."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    on_gpu = accelerator.device.type == "cuda"
    return {
        "time": timestamp(),
        "command": [Path(sys.executable).name, *map(without_secrets, own_arguments())],
        "python": platform.python_version(),
        "versions": versions,
        "commit": git_output("rev-parse", "HEAD"),
        "diff": git_output("diff", "HEAD", "--stat"),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "engine": engine,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def given_config(arguments: list[str]) -> str:
    """The text of the YAML file among `arguments`, if any, then the key=value as comments."""
    paths, pairs = split_arguments(arguments)
    files = [Path(each) for each in paths if each.endswith((".yaml", ".yml"))]
    text = "".join(
        f"# {path}\n{path.read_text(encoding='utf-8-sig').rstrip()}\n"
        for path in files
        if path.is_file()
    )
    shown = "".join(f"# {each}\n" for pair in pairs for each in pair.splitlines())
    return without_secrets(text + shown)


def own_arguments() -> list[str]:
    """What this process was started with, after the interpreter."""
    return getattr(sys, "orig_argv", sys.argv)[1:]


def shell_command() -> str:
    """One line for a shell: change to this folder, then the launcher's command, or our own."""
    words = [sys.executable, *own_arguments()]
    if {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        try:
            parent = psutil.Process().parent()
            launcher = parent.cmdline() if parent is not None else []
        except psutil.Error:
            launcher = []
        # Only if the parent is the launcher itself, not a process between it and us.
        if set(sys.argv[1:]) <= set(launcher):
            words = launcher
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)}"


def write_code_diff(run_dir: Path) -> str:
    """Write the code's difference from its commit, unless an earlier start had the same one.

    Returns the name of the file, "" if there is no difference.
    """
    diff = run_git("diff", "HEAD")
    if not diff:
        return ""
    number = 1
    while (path := run_dir / ("code.diff" if number == 1 else f"code.{number}.diff")).exists():
        if path.read_bytes() == diff:
            return path.name
        number += 1
    path.write_bytes(diff)
    return path.name


def git_output(*arguments: str) -> str:
    """What git prints, without surrounding white space."""
    return run_git(*arguments).decode(errors="replace").strip()


def run_git(*arguments: str) -> bytes:
    """What git prints in the project's folder; nothing without a repository, or a git that runs."""
    if locate.project_root() != locate.PACKAGE.parent:
        return b""  # an installed wheel: a repository around it would be another project's
    folder = Path(__file__).resolve().parent
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True).stdout
    except OSError:
        return b""
