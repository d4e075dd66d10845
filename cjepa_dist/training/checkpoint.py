"""Checkpoints: everything the next step reads, written to a temporary folder, checksummed, then renamed.

RUN/checkpoints/step_00000500/   torch.distributed.checkpoint files (weights, statistics, optimizer)
                                 model.safetensors   the task's weights and running statistics alone
                                 meta.json           step, position, world size
                                 checksums.json      xxh3 of every other file, written last
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from cjepa_dist import config as schema
from cjepa_dist.errors import UserError

if TYPE_CHECKING:
    from cjepa_dist.tasks import VqaTask, WorldModelTask


def save(folder: Path, task: nn.Module, optimizers: list[torch.optim.Optimizer], *, step: int, meta: dict[str, Any], keep: int) -> Path:
    """Write `step`'s checkpoint of the bare (unwrapped) task; all ranks call it. Keeps the newest `keep`."""
    final, temporary = folder / f"step_{step:08d}", folder / f"step_{step:08d}.partial"
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
    dcp.save(state, checkpoint_id=temporary, no_dist=not dist.is_initialized())
    barrier()
    if first:
        save_file({name: value.detach().cpu().contiguous() for name, value in task.state_dict().items()}, temporary / "model.safetensors")
        (temporary / "meta.json").write_text(json.dumps({**meta, "step": step}, indent=1))
        sums = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=1))
        for path in temporary.iterdir():
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(folder)
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step_{old:08d}")
    barrier()
    return final


def load(path: Path, task: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore task and optimizers in place; returns the meta data."""
    state = {"task": task.state_dict(), "optimizer": get_optimizer_state_dict(task, optimizers)}
    dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    task.load_state_dict(state["task"])
    set_optimizer_state_dict(task, optimizers, state["optimizer"])
    return json.loads((path / "meta.json").read_text())


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; a damaged one is passed over with a warning. None if there is no checkpoint."""
    for step in reversed(steps(folder)):
        path = folder / f"step_{step:08d}"
        fault = verify(path)
        if fault is None:
            return path
        print(f"warning: checkpoint {path} is damaged ({fault}); trying the one before", flush=True)
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = json.loads((path / "checksums.json").read_text())
        wrong = [name for name, value in sums.items() if checksum(path / name) != value]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(wrong)} changed" if wrong else None


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in folder.glob("step_????????") if p.is_dir())


def checksum(path: Path) -> str:
    with path.open("rb") as stream:
        digest = xxhash.xxh3_64()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def read_config(run: str | Path) -> schema.TrainWorldModel | schema.TrainAloe:
    """The resolved config of a run folder. Raises UserError if `run` is not one."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml")
    content = schema.read_yaml(path)
    return schema.build(schema.TrainAloe, content) if "aloe" in content else schema.build(schema.TrainWorldModel, content)


def load_task(run: str | Path) -> tuple[WorldModelTask | VqaTask, Any, int]:
    """(task on the CPU in eval mode, config, step) of a run's newest good checkpoint. Raises UserError if there is none."""
    from cjepa_dist import tasks

    config = read_config(run)
    path = newest(Path(run) / "checkpoints")
    if path is None:
        raise UserError(f"run {run} has no checkpoint: train it first")
    weights = load_file(path / "model.safetensors")
    task = tasks.build(config)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} does not fit its own config: {str(error).splitlines()[-1].strip()}") from error
    return task.eval(), config, json.loads((path / "meta.json").read_text())["step"]
