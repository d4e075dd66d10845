"""The directory of a training run: does it fit the config, who owns it, what is in it.

config.yaml           the resolved config                            here
environment.json ...  how the run was made                           provenance.py
data.json             the fingerprint of the data                    run_data.py
checkpoints/          all that the next step reads                   checkpoint/writer.py
last_checkpoint.json  the step of the newest one that was written    checkpoint/writer.py
metrics.jsonl         metrics, with TensorBoard's event files        logger.py
skipped.jsonl         steps whose loss or gradient was not finite    resilience/skipped_steps.py
resume.json           the run was stopped by a signal                resilience/preemption.py
.lock ...             the process that owns the directory            resilience/run_lock.py
done.json             the run is complete                            run.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from cjepa_dist.checkpoint.resume import CHANGES_ORDER, may_change
from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.config import fields, merge
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.resilience.run_lock import LOCK_FILES, RunLock
from cjepa_dist.training.provenance import write_provenance


def check_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Raises UserError where `run_dir` does not fit `config`; names the fields that differ."""
    if (run_dir / "config.yaml").exists():
        old, new = read_config(run_dir), config
        if type(old) is not type(new):
            raise UserError(
                f"{run_dir} holds a run of another kind ({type(old).__name__}): choose another run "
                "directory"
            )
        changed = changed_fields(old, new)
        if refused := [change for change in changed if not may_change(change.field)]:
            each = ", ".join(f"{field}={was}, not {now}" for field, was, now in refused)
            raise UserError(
                f"{run_dir} was started with {each}: choose another run directory or remove this "
                "one"
            )
        if reordered := [change for change in changed if change.field in CHANGES_ORDER]:
            each = ", ".join(f"{field}={now}, before {was}" for field, was, now in reordered)
            print(f"warning: {each}: the steps to come see samples in another order", flush=True)
    elif run_dir.exists() and any(
        path.name not in LOCK_FILES and path.suffix != ".partial" for path in run_dir.iterdir()
    ):
        raise UserError(
            f"{run_dir} is not empty and no run directory (no config.yaml): choose another"
        )


class Change(NamedTuple):
    """A config field with its value in the run directory and the one asked for now."""

    field: str
    was: Any
    now: Any


def changed_fields(old: TrainConfig, new: TrainConfig) -> list[Change]:
    """The fields in which two configs of one kind differ."""
    names = [name for name, _ in fields.leaf_fields(type(new))]
    found = [Change(name, config_value(old, name), config_value(new, name)) for name in names]
    return [change for change in found if change.was != change.now]


@contextmanager
def lock_run_dir(run_dir: Path, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Rank zero owns the run directory inside the block; all ranks enter.

    Raises UserError, on all ranks, where another process owns it or the disk is full.
    """
    lock = RunLock(run_dir)
    on_main_process(run_dir, lock.acquire, group)
    try:
        yield
    finally:
        lock.release()


def open_run_dir(
    run_dir: Path,
    config: TrainConfig,
    environment: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Make the directory and write how the run is made; call `check_run_dir` before.

    All ranks call it. Raises UserError, on all ranks, where the disk is full.
    """

    def write() -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        # The config comes first: without it the directory is no run directory.
        temporary = run_dir / "config.yaml.partial"
        merge.save_yaml(config, temporary)
        os.replace(temporary, run_dir / "config.yaml")
        write_provenance(run_dir, environment)

    on_main_process(run_dir, write, group)


def config_value(config: Any, key: str) -> Any:
    """The value of a nested field, `key` "table.field"."""
    for name in key.split("."):
        config = getattr(config, name)
    return config
