"""Where a run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.runtime.files import drop_lines_after

# Fields that may differ when a run goes on: they change what is written and when, not what is learned.
MAY_CHANGE = (
    "data", "run", "loop.num_processes", "loop.engine", "loop.replica_check_every", "loop.log_every", "loop.eval_every", "loop.checkpoint_every",
    "loop.checkpoint_every_minutes", "loop.keep_checkpoints", "loop.keep_best", "loop.stop_at_step", "loop.max_skipped_steps", "loop.hang_timeout_minutes", "loop.profile",
    "loop.async_checkpoints", "reading.workers", "reading.max_missing_samples", "reading.timeout", "reading.max_attempts",
)  # fmt: skip


def resume(run: Path, load: Callable[[Path], dict[str, Any]], *, first: bool) -> dict[str, Any]:
    """`load` the newest good checkpoint, if any; returns its meta data, of which "step" is the number of finished steps."""
    folder = run / "checkpoints"
    path, meta = newest_checkpoint(folder), dict[str, Any](step=0)
    if path is not None:
        meta = load(path)
        print(f"resumed from {path}", flush=True)
        if (best := meta.get("best")) and not (folder / f"step_{best['step']:08d}").exists():
            meta["best"] = None  # a later one, now damaged, had taken its place
    if first:
        for rest in folder.glob("*.partial"):  # of a process killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        drop_lines_after(run / "skipped.jsonl", meta["step"])
    return meta
