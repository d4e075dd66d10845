"""Resuming a run from its newest intact checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.runtime.collectives import is_main
from cjepa_dist.runtime.files import drop_lines_after

# Fields that may change when a run is resumed: they say what is written and when, and where the
# data are read, not what is learned.
CHANGEABLE_FIELDS = (
    "data",
    "run",
    "loop.num_processes",
    "loop.engine",
    "loop.replica_check_every",
    "loop.log_every",
    "loop.eval_every",
    "loop.checkpoint_every",
    "loop.checkpoint_every_minutes",
    "loop.keep_checkpoints",
    "loop.keep_best",
    "loop.stop_at_step",
    "loop.max_skipped_steps",
    "loop.hang_timeout_minutes",
    "loop.profile",
    "loop.async_checkpoints",
    "reading.workers",
    "reading.max_missing_samples",
    "reading.timeout",
    "reading.max_attempts",
)


def resume(run_dir: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """`load` the newest intact checkpoint, if there is one; returns its meta data.

    In these, "step" is the number of finished steps, 0 without a checkpoint. All ranks call it.
    """
    folder = run_dir / "checkpoints"
    path, meta = newest_checkpoint(folder), dict[str, Any](step=0)
    if path is not None:
        meta = load(path)
        print(f"resumed from {path}", flush=True)
        if (best := meta.get("best")) and not (folder / f"step_{best['step']:08d}").exists():
            meta["best"] = None  # it was removed for a later best one, which is damaged now
    if is_main():
        for rest in folder.glob("*.partial"):  # of a process killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        drop_lines_after(run_dir / "skipped.jsonl", meta["step"])
    return meta
