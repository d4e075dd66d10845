"""Writes checkpoints: all that the next step reads, in a folder that appears by one rename.

RUN/checkpoints/step_00000500/   torch.distributed.checkpoint files: weights, running statistics,
                                 optimizer, EMA
                    model.safetensors   the task's weights (their running mean with
                                        optimizer.ema_decay) and running statistics
                    meta.json           step, position, world size, skipped steps, best validation
                    checksums.json      xxh3 of every other file, written last
RUN/checkpoints/best.json        step, loss and folder of the best validation (loop.keep_best)
RUN/last_checkpoint.json         the step of the newest: a run that wrote one does not begin anew
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils._pytree import tree_leaves

from cjepa_dist.checkpoint.integrity import checkpoint_path, checkpoint_steps
from cjepa_dist.errors import UserError
from cjepa_dist.resilience import fault_injection
from cjepa_dist.resilience.disk_full import DISK_FULL_ERRNOS, find_os_error
from cjepa_dist.runtime.collectives import first_error, full_tensor, is_main
from cjepa_dist.runtime.files import file_checksum, free_bytes, fsync_path, write_json

# Printed by torch's writer and reader whenever there is one process only.
warnings.filterwarnings("ignore", "torch.distributed is disabled")


class CheckpointWriter:
    """Writes the checkpoints of a run into `folder` and keeps the newest `keep` of them.

    In the `background`, a step waits only for a copy to host memory; one thread does the rest
    beside the following steps. An error there is raised by the next `save` or `wait`, on all
    ranks. That thread needs its own process `group`: in one group, messages of two threads would
    mix. `record` is a file outside of `folder` for the step of the newest checkpoint. The steps
    in `damaged` are checkpoints that do not verify: they stay until a newer one is whole.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        background: bool = False,
        group: dist.ProcessGroup | None = None,
        record: Path | None = None,
        damaged: Collection[int] = (),
    ) -> None:
        self.folder, self.keep, self.group = folder, keep, group
        self.record, self.damaged = record, set(damaged)
        self.pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.staging = StagingOptions(
            use_pinned_memory=torch.cuda.is_available(),
            use_shared_memory=False,
            use_async_staging=False,
        )
        self.staging.use_non_blocking_copy = torch.cuda.is_available()
        self.pending: tuple[int, Future[None]] | None = None  # its step, and its end

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as fault:
            # When a checkpoint fills the disk, a line of metrics may fail before it. Then the
            # checkpoint's error is the more helpful one.
            if error is None or (isinstance(fault, UserError) and isinstance(error, Exception)):
                raise
        finally:
            if self.pool:
                self.pool.shutdown()

    def save(
        self,
        task: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        *,
        step: int,
        meta: dict[str, Any],
        ema_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Save the bare (unwrapped) task after `step` steps; all ranks call it.

        Tensors may be full on every rank or sharded (DTensor); the checkpoint loads on any number
        of processes, sharded or not. `ema_weights` {parameter: running mean} are saved too, and
        replace the weights in model.safetensors. `meta["best"]` {"step", "loss"}, if there is one,
        goes to `folder`/best.json, and that checkpoint is kept. Raises UserError when the disk is
        full.
        """
        self.wait()
        state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
        if ema_weights is not None:
            state["mean"] = ema_weights
        exported = {**state["task"], **(ema_weights or {})}
        exported = {name: full_tensor(value.detach()) for name, value in exported.items()}
        content = {"state": state, "weights": exported if is_main() else {}}
        if self.pool is None:
            self.write(content, step, meta)
        else:
            # A new stager each time: that of torch 2.11 works once (pytorch issue 183413).
            staged: Any = DefaultStager(self.staging).stage(content)
            self.pending = step, self.pool.submit(self.write, staged, step, meta)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; raises the error that stopped it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            step, future = pending
            fault_injection.inject_before_waiting(step)
            future.result()

    def write(self, content: dict[str, Any], step: int, meta: dict[str, Any]) -> None:
        final = self.folder / f"step_{step:08d}"
        temporary = self.folder / f"step_{step:08d}.partial"

        def make_folder() -> None:
            if is_main():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

        def write_state() -> None:
            dcp.save(
                content["state"],
                checkpoint_id=temporary,
                process_group=self.group,
                no_dist=not dist.is_initialized(),
            )

        def publish() -> None:
            if is_main():
                write_weights_and_meta(temporary, content["weights"], {**meta, "step": step})
                fault_injection.inject_before_rename(step)
                replace_folder(final, temporary)
                fsync_path(self.folder)
                if self.record is not None:
                    write_json(self.record, {"step": step})
                self.damaged.discard(step)
                apply_retention(self.folder, step, self.keep, meta.get("best"), self.damaged)

        try:
            for action in (make_folder, write_state, publish):
                self.run_on_all_ranks(action)
        except (Exception, CheckpointException) as error:
            message = None
            fault_injection.inject_after_failed_checkpoint(step)
            if is_main():
                shutil.rmtree(temporary, ignore_errors=True)
                message = disk_full_message(self.folder, content, error)
                message = message or unwritable_message(self.folder, error)
            if message := first_error(message, self.group):
                raise UserError(message) from error
            raise

    def run_on_all_ranks(self, action: Callable[[], None]) -> None:
        """Every rank runs `action`; if it fails on one, all raise, so that none waits for it."""
        fault: BaseException | None = None
        try:
            action()
        except (Exception, CheckpointException) as error:  # torch's is not an Exception
            fault = error
        text = first_error(
            None if fault is None else f"{type(fault).__name__}: {fault}", self.group
        )
        if text is not None:
            raise fault or RuntimeError(f"on another rank: {text}")


def write_weights_and_meta(folder: Path, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Complete a checkpoint's `folder` with what rank zero writes, and flush it to disk."""
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    weights_file = folder / "model.safetensors"
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, weights_file)
    # safetensors makes files that only their owner may read; the others follow the umask.
    shutil.copymode(folder / "meta.json", weights_file)
    checksums = {path.name: file_checksum(path) for path in sorted(folder.iterdir())}
    (folder / "checksums.json").write_text(json.dumps(checksums, indent=1))
    for path in folder.iterdir():
        fsync_path(path)


def disk_full_message(folder: Path, content: dict[str, Any], error: BaseException) -> str | None:
    """What to tell the user if `error` came from a full disk, else None.

    torch's writer does not pass the errno on, so the free space is measured too.
    """
    needed = sum(value.nbytes for value in tree_leaves(content) if isinstance(value, Tensor))
    free = free_bytes(folder)
    told = any(os.strerror(code) in str(error) for code in DISK_FULL_ERRNOS)
    if free > 1.2 * needed + 65536 and not told:
        return None
    return (
        f"no space left for a checkpoint in {folder}: it needs about {needed} bytes, {free} are "
        "free; nothing there was changed: free some space and run the same command again"
    )


def unwritable_message(folder: Path, error: BaseException) -> str | None:
    """What to tell the user if the system refused to write a checkpoint, else None."""
    fault = find_os_error(error)
    if fault is None or fault.errno is None:
        return None
    return (
        f"a checkpoint cannot be written in {folder}: {fault.filename or folder}: "
        f"{os.strerror(fault.errno)}; earlier ones are as they were: mend that and run the same "
        "command again"
    )


def replace_folder(final: Path, new: Path) -> None:
    """Rename `new` to `final`; what was there is removed after that."""
    old = final.with_name(f"{final.name}.replaced.partial")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def apply_retention(
    folder: Path,
    step: int,
    keep: int,
    best: dict[str, Any] | None,
    damaged: Collection[int] = (),
) -> None:
    """After `step` was saved, keep the newest `keep` whole checkpoints and the best one.

    Those of later steps stay: the run was resumed before them, since they were `damaged`, and
    nothing newer is whole yet.
    """
    best_file = folder / "best.json"
    if best is None:
        best_file.unlink(missing_ok=True)
    else:
        write_json(best_file, {**best, "folder": f"step_{best['step']:08d}"})
    steps = [old for old in checkpoint_steps(folder) if old <= step]
    whole = [old for old in steps if old not in damaged]
    for old in set(steps) - {*whole[-keep:], *([best["step"]] if best else [])}:
        shutil.rmtree(checkpoint_path(folder, old))
