"""A run's folder: is it this config's, what it says of the run, and where the run goes on.

config.yaml (resolved), environment.json, and what record.py adds; checkpoints/ (checkpoint.py), metrics.jsonl and TensorBoard's events
(telemetry.py), skipped.jsonl (skip.py), resume.json and the lock (guard.py); done.json when the run is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist import config as schema
from cjepa_dist import runtime
from cjepa_dist.errors import UserError
from cjepa_dist.training import checkpoint, record
from cjepa_dist.training.guard import OWN_FILES
from cjepa_dist.training.room import alone, write_whole
from cjepa_dist.training.telemetry import rewind

Config = schema.TrainWorldModel | schema.TrainAloe
# Fields that may differ when a run goes on: they change what is written and when, not what is learned.
FREE = (
    "data", "run", "loop.processes", "loop.engine", "loop.compare_every", "loop.log_every", "loop.eval_every", "loop.checkpoint_every",
    "loop.checkpoint_minutes", "loop.keep", "loop.keep_best", "loop.stop_at", "loop.skip_budget", "loop.hang_minutes", "loop.profile",
    "loop.async_checkpoints", "reading.workers", "reading.tolerate", "reading.timeout", "reading.tries",
)  # fmt: skip


def resume(run: Path, load: Callable[[Path], dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """`load` the newest good checkpoint, if any; returns its meta data, of which "step" is the number of finished steps."""
    folder = run / "checkpoints"
    path, meta = checkpoint.newest(folder), dict[str, Any](step=0)
    if path is not None:
        meta = load(path)
        print(f"resumed from {path}", flush=True)
        if (best := meta.get("best")) and not (folder / f"step_{best['step']:08d}").exists():
            meta["best"] = None  # a later one, now damaged, had taken its place
    if first:
        for rest in folder.glob("*.partial"):  # of a process killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        rewind(run / "skipped.jsonl", meta["step"])
    return meta


def settle_precision(run: Path, config: Config) -> None:
    """Put a number format in the place of loop.precision=auto: what the run has, the launcher's, or what the device has."""
    if config.loop.precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        begun = checkpoint.read_config(run).loop.precision if (run / "config.yaml").exists() else ""
        config.loop.precision = begun or (launched if launched != "no" else runtime.native_precision())


def check_batch(config: Config, world: int) -> None:
    loop = config.loop
    parts = world * loop.accumulation
    if loop.global_batch % parts:
        raise UserError(
            f"loop.global_batch={loop.global_batch} is not divisible by {world} processes x loop.accumulation={loop.accumulation}"
        )
    if isinstance(config, schema.TrainWorldModel) and (fraction := config.ctt.fraction) < 1:
        share = fraction * loop.global_batch / parts
        if share < 1 or abs(share - round(share)) > 1e-6:
            raise UserError(
                f"ctt.fraction={fraction} of the {loop.global_batch // parts} windows of a pass is {share:g}: take a fraction that gives a "
                "whole number, so that the windows chosen do not depend on the number of processes"
            )


def check_run(run: Path, config: Config) -> None:
    """Raises UserError where `run` is no folder for this config, naming the field that differs."""
    if (run / "config.yaml").exists():
        old, new = checkpoint.read_config(run), config
        if type(old) is not type(new):
            raise UserError(f"{run} holds a run of another kind ({type(old).__name__}): choose another run folder")
        for key, _ in schema.walk(type(config)):
            if key not in FREE and (was := read(old, key)) != (now := read(new, key)):
                raise UserError(f"{run} was started with {key}={was}, not {now}: choose another run folder or remove this one")
    elif run.exists() and any(path.name not in OWN_FILES and path.suffix != ".partial" for path in run.iterdir()):
        raise UserError(f"{run} is not empty and no run folder (no config.yaml): choose another")


def open_run(run: Path, config: Config, environment: dict[str, Any], *, first: bool, group: dist.ProcessGroup | None = None) -> None:
    """Make the run folder and write what the run is; `check_run` has seen it. All ranks call it; UserError where there is no room."""

    def write() -> None:
        run.mkdir(parents=True, exist_ok=True)
        schema.save(config, temporary := run / "config.yaml.partial")
        os.replace(temporary, run / "config.yaml")  # before all else: without it what follows is no run folder
        write_json(run / "environment.json", environment)
        record.write(run)

    alone(run, write, first=first, group=group)


def read(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    write_whole(path, json.dumps(content, indent=1))
