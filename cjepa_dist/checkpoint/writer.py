"""Checkpoints: everything the next step reads, written to a temporary folder, checksummed, then renamed.

RUN/checkpoints/step_00000500/   torch.distributed.checkpoint files (weights, statistics, optimizer)
                                 model.safetensors   the task's weights (with optimizer.ema_decay their running mean) and running statistics
                                 meta.json           step, position, world size, skipped steps, best validation
                                 checksums.json      xxh3 of every other file, written last
RUN/checkpoints/best.json        step, loss, folder of the best validation (loop.keep_best)
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils._pytree import tree_leaves

from cjepa_dist.checkpoint.integrity import checkpoint_steps
from cjepa_dist.errors import UserError
from cjepa_dist.resilience import fault_injection
from cjepa_dist.resilience.disk_full import DISK_FULL_ERRNOS
from cjepa_dist.runtime.collectives import first_error, full_tensor
from cjepa_dist.runtime.files import file_checksum, free_bytes, fsync_path, write_text_atomic

if TYPE_CHECKING:
    pass
from cjepa_dist.runtime.collectives import is_main

warnings.filterwarnings(
    "ignore", "torch.distributed is disabled"
)  # by torch's writer and reader, whenever one process runs


class CheckpointWriter:
    """Writes the checkpoints of a run into `folder`, the newest `keep` of which stay.

    In the `background` a step waits for a copy to host memory alone; one thread does the rest, beside the steps that follow. What went
    wrong there is raised by the next `save` or `wait`, on all ranks. `group` is for that thread's talk with other ranks: it must be of its
    own, or two threads' messages would meet.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        background: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.folder, self.keep, self.group = folder, keep, group
        self.pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.staging = StagingOptions(
            use_pinned_memory=torch.cuda.is_available(),
            use_shared_memory=False,
            use_async_staging=False,
        )
        self.staging.use_non_blocking_copy = torch.cuda.is_available()
        self.pending: Future[None] | None = None

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
            # A checkpoint that fills the disk leaves no room for a line of metrics either, and says more of it.
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
        mean: dict[str, Tensor] | None = None,
    ) -> None:
        """`step`'s checkpoint of the bare (unwrapped) task; all ranks call it.

        Tensors may be full on every rank or sharded (DTensor): what is written loads at any number of processes, sharded or not.
        `mean` {parameter: running mean} is saved too, and stands in model.safetensors in the place of the weights.
        `meta["best"]` {"step", "loss"}, if there is one, goes to `folder`/best.json and is kept. Raises UserError when the disk is full.
        """
        self.wait()
        state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
        if mean is not None:
            state["mean"] = mean
        full = {
            name: full_tensor(value.detach())
            for name, value in {**state["task"], **(mean or {})}.items()
        }  # all ranks take part
        content = {"state": state, "weights": full if is_main() else {}}
        if self.pool is None:
            self.write(content, step, meta)
        else:
            staged: Any = DefaultStager(self.staging).stage(
                content
            )  # torch 2.11's serves once (pytorch issue 183413)
            self.pending = self.pool.submit(self.write, staged, step, meta)

    def wait(self) -> None:
        """Until the checkpoint that was begun last is on disk; raises what stopped it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def write(self, content: dict[str, Any], step: int, meta: dict[str, Any]) -> None:
        final, temporary = (
            self.folder / f"step_{step:08d}",
            self.folder / f"step_{step:08d}.partial",
        )
        first = is_main()

        def begin() -> None:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

        def write() -> None:
            dcp.save(
                content["state"],
                checkpoint_id=temporary,
                process_group=self.group,
                no_dist=not dist.is_initialized(),
            )

        def finish() -> None:
            if not first:
                return
            save_file(
                {name: value.cpu().contiguous() for name, value in content["weights"].items()},
                temporary / "model.safetensors",
            )
            (temporary / "meta.json").write_text(json.dumps({**meta, "step": step}, indent=1))
            sums = {path.name: file_checksum(path) for path in sorted(temporary.iterdir())}
            (temporary / "checksums.json").write_text(json.dumps(sums, indent=1))
            for path in temporary.iterdir():
                fsync_path(path)
            fault_injection.inject_in_checkpoint(step)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync_path(self.folder)
            apply_retention(self.folder, step, self.keep, meta.get("best"))

        try:
            for part in (begin, write, finish):
                self.together(part)
        except (Exception, CheckpointException) as error:
            fault = None
            fault_injection.inject_failed_checkpoint(step)
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
                fault = disk_full_message(self.folder, content, error)
            if fault := first_error(fault, self.group):
                raise UserError(fault) from error
            raise

    def together(self, part: Callable[[], None]) -> None:
        """Every rank does its `part`; where one fails, all do, so that nobody waits for it."""
        fault: BaseException | None = None
        try:
            part()
        except (Exception, CheckpointException) as error:  # the latter is torch's and no Exception
            fault = error
        text = first_error(
            None if fault is None else f"{type(fault).__name__}: {fault}", self.group
        )
        if text is not None:
            raise fault or RuntimeError(f"on another rank: {text}")


def disk_full_message(folder: Path, content: dict[str, Any], error: BaseException) -> str | None:
    """What to tell the user if `error` came from a full disk (torch's writer keeps the errno to itself, so the room is measured)."""
    needed = sum(value.nbytes for value in tree_leaves(content) if isinstance(value, torch.Tensor))
    room = free_bytes(folder)
    if room > 1.2 * needed + 65536 and not any(
        os.strerror(code) in str(error) for code in DISK_FULL_ERRNOS
    ):
        return None
    return (
        f"no room for a checkpoint in {folder}: it needs about {needed} bytes, {room} are free; nothing there was changed: "
        "make room and run the same command again"
    )


def apply_retention(folder: Path, step: int, keep: int, best: dict[str, Any] | None) -> None:
    """After `step` was saved: the newest `keep` and the best stay. Later ones are of a future that was given up, because it was damaged."""
    mark = folder / "best.json"
    if best is None:
        mark.unlink(missing_ok=True)
    else:
        write_text_atomic(
            mark, json.dumps({**best, "folder": f"step_{best['step']:08d}"}, indent=1)
        )
    past = [old for old in checkpoint_steps(folder) if old <= step]
    for old in (
        set(checkpoint_steps(folder)) - set(past[-keep:]) - ({best["step"]} if best else set())
    ):
        shutil.rmtree(folder / f"step_{old:08d}")
