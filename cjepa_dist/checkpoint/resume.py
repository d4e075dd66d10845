"""Resuming a run: which config fields may differ, from which checkpoint, and what is tidied.

choose_resume_point   rank zero looks at RUN/checkpoints, all ranks get its choice. UserError
                      where a checkpoint cannot be read, where none is whole, or where there
                      is none though RUN/last_checkpoint.json says that one was written:
                      a run never begins anew by itself
resume                all ranks load that checkpoint, or all raise the same UserError
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cjepa_dist.checkpoint.integrity import (
    CHECKPOINT_NAME,
    Choice,
    checkpoint_path,
    choose_checkpoint,
    read_identity,
)
from cjepa_dist.errors import UserError
from cjepa_dist.resilience.disk_full import on_main_process
from cjepa_dist.runtime.collectives import first_error, from_main
from cjepa_dist.runtime.files import drop_lines_after

# The fields that may change when a run is resumed, and why. Every other field decides what is
# learned, and its change is refused. A name that ends in "." stands for all fields of that table.
CHANGEABLE_FIELDS = {
    "data": "the same data may lie elsewhere",
    "run": "the directory may have been moved",
    "loop.num_processes": "a step has the same samples on any number of processes",
    "loop.engine": "all engines write one format and compute the same steps",
    "loop.gradient_accumulation": "the same samples in more passes: another order of sums",
    "loop.cuda_graph": "the same kernels, launched one by one or replayed",
    "loop.replica_check_every": "it only compares",
    "loop.log_every": "it only reads",
    "loop.eval_every": "it only reads; with keep_best it decides among more or fewer checkpoints",
    "loop.checkpoint_every": "it only writes",
    "loop.checkpoint_every_minutes": "it only writes",
    "loop.keep_checkpoints": "it decides what is kept, not what is learned",
    "loop.keep_best": "it decides what is kept, not what is learned",
    "loop.async_checkpoints": "the same checkpoint, written in another thread",
    "loop.stop_at_step": "the run goes on later",
    "loop.max_skipped_steps": "it only decides when to give up",
    "loop.hang_timeout_minutes": "it only decides when to give up",
    "loop.profile": "it only measures",
    "reading.": "how and how fast samples are read; see CHANGES_ORDER",
}
# Of these the order of samples depends: after a change, that of the steps to come is another one.
CHANGES_ORDER = ("reading.kind", "reading.shuffle_shards", "reading.shard_groups")

LAST_CHECKPOINT = "last_checkpoint.json"  # beside checkpoints/, which may be on another disk
PARTIAL_NAME = re.compile(CHECKPOINT_NAME.pattern + r"(\.replaced)?\.partial")


def may_change(field: str) -> bool:
    """Whether a run may be resumed with another value of a config field."""
    return field in CHANGEABLE_FIELDS or f"{field.split('.')[0]}." in CHANGEABLE_FIELDS


def choose_resume_point(run_dir: Path, group: dist.ProcessGroup | None = None) -> Choice | None:
    """The checkpoint to go on from, None for a run that never wrote one; the same on all ranks.

    Changes nothing. All ranks call it, and raise the same UserError where the run must not go on
    by itself.
    """
    found: list[Choice | None] = [None]

    def look() -> None:
        found[0] = choose_checkpoint(run_dir / "checkpoints")
        check_record(run_dir, found[0])

    on_main_process(run_dir, look, group)
    return from_main(found[0], group)


def check_record(run_dir: Path, choice: Choice | None) -> None:
    """Compare a choice with what RUN/last_checkpoint.json says was written. Raises UserError."""
    record = run_dir / LAST_CHECKPOINT
    try:
        step = json.loads(record.read_bytes())["step"]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError):
        step = "?"
    folder = run_dir / "checkpoints"
    if choice is None:
        raise UserError(
            f"{folder} has no checkpoint, but this run wrote one of step {step}: mount or restore "
            f"that folder; or, to train anew, choose another run= or remove {run_dir}"
        )
    if step not in (choice.step, *choice.damaged):
        print(
            f"warning: this run wrote a checkpoint of step {step}, which is not in {folder}; "
            f"it goes on from step {choice.step}",
            flush=True,
        )


def resume(
    run_dir: Path,
    load: Callable[[Path], dict[str, Any]],
    choice: Choice | None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """`load` the chosen checkpoint, if there is one; returns its meta data.

    In these, "step" is the number of finished steps, 0 without a checkpoint. All ranks call it.
    Raises UserError, on all ranks, where one of them cannot read the checkpoint.
    """
    folder, meta = run_dir / "checkpoints", dict[str, Any](step=0)
    if choice is not None:
        path = checkpoint_path(folder, choice.step)
        on_all_ranks(lambda: check_same_checkpoint(path, choice), group)
        meta = on_all_ranks(lambda: load(path), group)
        print(f"resumed from {path}", flush=True)
        if (best := meta.get("best")) and not checkpoint_path(folder, best["step"]).exists():
            meta["best"] = None  # it was removed for a later best one, which is damaged now
    on_main_process(run_dir, lambda: tidy(run_dir, meta["step"]), group)
    return meta


def check_same_checkpoint(path: Path, choice: Choice) -> None:
    """Raises UserError where this rank sees another checkpoint than the one that was chosen."""
    if read_identity(path) != choice.identity:
        raise UserError(
            f"{path} is not the checkpoint that rank 0 sees: all nodes must see one run directory"
        )


def on_all_ranks(action: Callable[[], Any], group: dist.ProcessGroup | None) -> Any:
    """What `action` returns; if it raises a UserError on one rank, all ranks raise that."""
    found, message = None, None
    try:
        found = action()
    except UserError as error:
        rank = dist.get_rank() if dist.is_initialized() else 0
        message = f"rank {rank} on {socket.gethostname()}: {error}"
    if message := first_error(message, group):
        raise UserError(message)
    return found


def tidy(run_dir: Path, step: int) -> None:
    """Remove what a process that was killed left half-written, and lines of steps to repeat."""
    folder = run_dir / "checkpoints"
    for rest in folder.glob("step_*.partial"):
        if PARTIAL_NAME.fullmatch(rest.name):
            shutil.rmtree(rest, ignore_errors=True)
    drop_lines_after(run_dir / "skipped.jsonl", step)
