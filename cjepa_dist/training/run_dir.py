"""A run's folder: is it this config's, what it says of the run, and where the run goes on.

config.yaml (resolved), environment.json, and what record.py adds; checkpoints/ (checkpoint.py), metrics.jsonl and TensorBoard's events
(telemetry.py), skipped.jsonl (skip.py), resume.json and the lock (guard.py); done.json when the run is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist.checkpoint.resume import CHANGEABLE_FIELDS
from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.config import fields, merge
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.resilience.run_lock import LOCK_FILES, RunLock
from cjepa_dist.runtime.files import write_json
from cjepa_dist.training import provenance


def check_run_dir(run: Path, config: TrainConfig) -> None:
    """Raises UserError where `run` is no folder for this config, naming the field that differs."""
    if (run / "config.yaml").exists():
        old, new = read_config(run), config
        if type(old) is not type(new):
            raise UserError(
                f"{run} holds a run of another kind ({type(old).__name__}): choose another run folder"
            )
        for key, _ in fields.leaf_fields(type(config)):
            if key not in CHANGEABLE_FIELDS and (was := config_value(old, key)) != (
                now := config_value(new, key)
            ):
                raise UserError(
                    f"{run} was started with {key}={was}, not {now}: choose another run folder or remove this one"
                )
    elif run.exists() and any(
        path.name not in LOCK_FILES and path.suffix != ".partial" for path in run.iterdir()
    ):
        raise UserError(f"{run} is not empty and no run folder (no config.yaml): choose another")


@contextmanager
def lock_run_dir(run: Path, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Rank zero owns the run directory inside the block; all ranks enter.

    Raises UserError, on all ranks, where another process owns it or the disk is full.
    """
    lock = RunLock(run)
    on_main_process(run, lock.acquire, group)
    try:
        yield
    finally:
        lock.release()


def open_run_dir(
    run: Path,
    config: TrainConfig,
    environment: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Make the run folder and write what the run is; `check_run` has seen it. All ranks call it; UserError where there is no room."""

    def write() -> None:
        run.mkdir(parents=True, exist_ok=True)
        merge.save_yaml(config, temporary := run / "config.yaml.partial")
        os.replace(
            temporary, run / "config.yaml"
        )  # before all else: without it what follows is no run folder
        write_json(run / "environment.json", environment)
        provenance.write_provenance(run)

    on_main_process(run, write, group)


def config_value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
