"""A released checkpoint becomes a run folder: `python -m tools.import_checkpoint source=FILE.ckpt out=RUN [key=value ...]`.

    FILE.ckpt ──torch.load(weights_only=True)──> tensors by name ──from_reference──> task ──> RUN, as after training
                                                 time_pos_embed: C-JEPA        data=DIR ──┘ statistics of residuals, empty slot
                                                 q_in_proj.weight: ALOE

Tensors are found at any depth and under any prefix: a bare state dict, {"state_dict": ...}, "module.", "model.predictor.".
RUN is written beside itself and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.checkpoint import integrity
from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import (
    MISSING,
    AloeConfig,
    LoopConfig,
    PredictorConfig,
    TrainAloe,
    TrainWorldModel,
)
from cjepa_dist.data.format.manifest import Manifest, partial
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.models import aloe, predictor
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.environment import describe_environment
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.build import build_task
from cjepa_dist.tasks.vqa import VqaTask
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.run_dir import open_run_dir

C_JEPA, ALOE = "C-JEPA", "ALOE"
MARKS = {"time_pos_embed": C_JEPA, "q_in_proj.weight": ALOE}  # a parameter that only this model has
ONLY = {C_JEPA: ("history_frames", "pred_frames", "frameskip"), ALOE: ("frames", "stride")}
SETTINGS = {
    16: (6, 10, 2),
    4: (3, 1, 5),
}  # time embeddings -> history, predicted, frameskip: the paper's and the CTT follow-up's
NO_DATA = "(none: the run was imported; give data=DIR)"
DEPTH = 4  # of the dicts that are searched
BATCH = 64


@dataclass
class ImportCheckpoint:
    """Make a run folder of a released C-JEPA or ALOE checkpoint. Sizes that leave no trace in it are options; 0 = the published one."""

    source: str = option(MISSING, "torch.save file with the weights by their released names")
    out: str = option(MISSING, "run folder to make; must not exist")
    data: str = option(
        "",
        "slot shards: measures what evaluate_graph reads (C-JEPA), and is the run's data from then on",
    )
    split: str = option("train", "C-JEPA: split to measure on")
    windows: int = option(2048, "C-JEPA: windows to measure on", unit="windows", least=1)
    prefix: str = option(
        "",
        "where the model stands if the file holds several, '.' = at the top; empty = the only one there is",
    )
    heads: int = option(0, "attention heads", least=0)
    slots: int = option(
        0, "object slots a frame; 0 = as in data, else the published number", unit="slots", least=0
    )
    history_frames: int = option(0, "C-JEPA: observed frames", unit="frames", least=0)
    pred_frames: int = option(0, "C-JEPA: predicted frames", unit="frames", least=0)
    frameskip: int = option(0, "C-JEPA: video frames between model frames", unit="frames", least=0)
    frames: int = option(0, "ALOE: frames sampled from a video", unit="frames", least=0)
    stride: int = option(0, "ALOE: video frames between sampled frames", unit="frames", least=0)


def main(config: ImportCheckpoint) -> int:
    """Make the run. Raises UserError for a file that is no such checkpoint, sizes that do not fit it, or an `out` that exists."""
    out, temporary = Path(config.out), partial(config.out)
    if out.exists():
        raise UserError(f"out={out} exists already: choose another run folder or remove it")
    manifest = Manifest.load(config.data) if config.data else None
    kind, prefix, found = find(dict(tensors(read(config.source))), config)
    if unused := [
        f"{name}={getattr(config, name)}"
        for other in ONLY
        if other != kind
        for name in ONLY[other]
        if getattr(config, name)
    ]:
        raise UserError(f"{config.source} holds {kind}, which has no {', '.join(unused)}")
    task: WorldModelTask | VqaTask
    trained: TrainWorldModel | TrainAloe
    task, trained, statistics = (world_model if kind == C_JEPA else vqa)(config, found, manifest)
    here: Any = SimpleNamespace(
        device=torch.device("cpu"), distributed_type="NO", num_processes=1, mixed_precision="no"
    )
    environment = describe_environment(here, "none", "fp32")
    environment["imported"] = {
        "file": Path(config.source).name,
        "xxh3": integrity.file_checksum(Path(config.source)),
        "prefix": prefix,
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        open_run_dir(temporary, trained, environment, first=True)
        meta = {"position": 0, "processes": 1}
        CheckpointWriter(temporary / "checkpoints", keep=1).save(
            task, build_optimizers(task, trained.optimizer), step=0, meta=meta
        )
        write_json(temporary / "done.json", {"step": 0})
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    count = sum(p.numel() for p in task.parameters())
    print(
        f"{out}: {kind}, {count:,} parameters from {config.source}"
        + (f" under {prefix}" if prefix else "")
    )
    print(describe(trained))
    print(statistics)
    return 0


# --- reading


def read(path: str) -> Mapping[Any, Any]:
    """The content of a torch.save file. UserError if it is missing, damaged, no dict, or needs code, which is named and does not run."""
    try:
        with warnings.catch_warnings():  # of torch, about protocols: what matters is said below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"source={path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, pickle.UnpicklingError) and (
            needs := re.search(r"GLOBAL (\S+)", str(error))
        ):
            advice = "only tensors and plain containers are read, nothing was run; where its code is, save its state_dict() alone"
            raise UserError(f"{path} needs {needs[1]}: {advice}") from error
        if isinstance(
            error, pickle.UnpicklingError
        ):  # its first lines advise to load without the guard
            fault = re.search(r"WeightsUnpickler error: (.+)", str(error))
            reason = fault[1] if fault else "damaged"
        else:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable torch.save file: {reason:.200}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def tensors(
    content: Mapping[Any, Any], prefix: str = "", depth: int = DEPTH
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts by their dotted names."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping) and depth:
            yield from tensors(value, f"{prefix}{key}.", depth - 1)


def find(
    state: Mapping[str, Tensor], config: ImportCheckpoint
) -> tuple[str, str, dict[str, Tensor]]:
    """(kind, prefix, parameters without it) of the one model in the file. UserError if there is none, or more than one to choose from."""
    models = {
        key.removesuffix(mark): kind
        for mark, kind in MARKS.items()
        for key in state
        if key == mark or key.endswith(f".{mark}")
    }  # prefix: kind
    wanted = config.prefix.strip(".")
    chosen = [wanted and f"{wanted}."] if config.prefix else list(models)
    names = ", ".join(f"prefix={prefix.removesuffix('.') or '.'}" for prefix in models)
    if len(chosen) > 1:
        raise UserError(f"{config.source} holds several models: choose one of {names}")
    if not chosen or chosen[0] not in models:
        seen = (
            f"models are at {names}"
            if models
            else f"its tensors: {', '.join(list(state)[:3]) or 'none'}"
        )
        where = f" at prefix={config.prefix}" if config.prefix else ""
        raise UserError(
            f"{config.source} has neither time_pos_embed (C-JEPA) nor q_in_proj.weight (ALOE){where}; {seen}"
        )
    prefix = chosen[0]
    within = tuple(
        other for other in models if other != prefix and other.startswith(prefix)
    )  # a copy, say ema.*, beside the top level's
    mine = {
        key: value
        for key, value in state.items()
        if key.startswith(prefix) and not key.startswith(within)
    }
    return models[prefix], prefix, {key.removeprefix(prefix): value for key, value in mine.items()}


# --- the two kinds


def world_model(
    config: ImportCheckpoint, found: dict[str, Tensor], manifest: Manifest | None
) -> tuple[WorldModelTask, TrainWorldModel, str]:
    """(task, its config, what is known of the statistics). UserError for sizes that do not fit."""
    time, released = found["time_pos_embed"], PredictorConfig()
    if time.ndim != 4:
        raise UserError(
            f"{config.source}: time_pos_embed is {tuple(time.shape)}, not (1, frames, 1, width)"
        )
    total, width = time.shape[1], time.shape[3]
    history, future = config.history_frames, config.pred_frames
    if not history and not future:
        if total not in SETTINGS:
            raise UserError(
                f"{total} time embeddings are no published setting (16 or 4): give history_frames=N, the rest are predicted"
            )
        history, future, _ = SETTINGS[total]
    history, future = history or total - future, future or total - history
    if history < 1 or future < 1 or history + future != total:
        raise UserError(
            f"history_frames and pred_frames must make up the file's {total} time embeddings, not {history} + {future}"
        )
    skip = next((skip for *split, skip in SETTINGS.values() if split == [history, future]), 0)
    published, size = width == released.slot_dim, f"slot_dim {width}"
    sizes = {
        "history_frames": history,
        "pred_frames": future,
        "heads": settle("heads", config.heads, published and released.heads, size),
        "slots": settle(
            "slots",
            config.slots or (manifest.slots if manifest else 0),
            published and released.slots,
            size,
        ),
    }
    trained = TrainWorldModel(
        data=config.data or NO_DATA,
        run=config.out,
        frameskip=settle("frameskip", config.frameskip, skip, f"{history} + {future} frames"),
        loop=LoopConfig(epochs=0),  # it was trained elsewhere: there is nothing to go on with
    )
    model = fitted(
        predictor.SlotPredictor.from_reference,
        predictor.reference_names,
        found,
        sizes,
        config.source,
    )
    trained.predictor = model.config
    task = build_task(trained).eval()
    assert isinstance(task, WorldModelTask)
    task.predictor.load_state_dict(model.state_dict())
    if manifest is None:
        unknown = "their variance and median are taken as 1 and the empty slot as 0"
        return (
            task,
            trained,
            f"residuals were not measured: for evaluate_graph {unknown}; data=DIR measures them",
        )
    manifest.check_slots(
        trained.predictor.slots,
        trained.predictor.slot_dim,
        config.data,
        f"the model of {config.source}",
    )
    source = InMemoryWindows(
        config.data,
        config.split,
        history_frames=history,
        pred_frames=future,
        frameskip=trained.frameskip,
    )
    if manifest.empty_slot is not None:
        task.empty.copy_(torch.tensor(manifest.empty_slot))
    count = measure(task, source, config.windows)
    empty = "from the manifest" if manifest.empty_slot is not None else "unknown (0)"
    text = f"residuals of {count} windows of {config.data}: mean variance {task.sigma2.mean():.4g}, median {task.tau:.4g} nats"
    return task, trained, f"{text}; empty slot {empty}"


def vqa(
    config: ImportCheckpoint, found: dict[str, Tensor], manifest: Manifest | None
) -> tuple[VqaTask, TrainAloe, str]:
    """(task, its config, what is known of the statistics: it has none). UserError for sizes that do not fit."""
    released = AloeConfig()
    position = found.get(name := "transformer_encoder.pos_embedding")
    if position is None or position.ndim != 3:
        fault = (
            "is missing"
            if position is None
            else f"is {tuple(position.shape)}, not (1, tokens, width)"
        )
        raise UserError(f"{config.source}: {name} {fault}")
    tokens, width = (
        position.shape[1] - 1 - aloe.QUESTION_WORDS - aloe.CHOICE_WORDS,
        position.shape[2],
    )
    frames, slots = config.frames, config.slots
    if not frames and not slots and tokens == released.frames * released.slots:
        frames, slots = released.frames, released.slots
    if not frames and not slots:
        slots = settle(
            "frames=N or slots",
            manifest.slots if manifest else 0,
            0,
            f"{tokens} positions of frames x slots",
        )
    frames, slots = frames or tokens // slots, slots or tokens // frames
    if frames * slots != tokens:
        raise UserError(
            f"frames x slots must be the file's {tokens} positions, not {frames} x {slots}"
        )
    trained = TrainAloe(
        data=config.data or NO_DATA,
        run=config.out,
        stride=settle(
            "stride",
            config.stride,
            frames == released.frames and TrainAloe.stride,
            f"{frames} frames a video",
        ),
        loop=LoopConfig(epochs=0),
    )
    heads = settle(
        "heads", config.heads, width == released.width and released.heads, f"width {width}"
    )
    sizes = {"heads": heads, "frames": frames, "slots": slots}
    model = fitted(aloe.Aloe.from_reference, aloe.reference_names, found, sizes, config.source)
    trained.aloe = model.config
    if manifest is not None:
        manifest.check_slots(
            trained.aloe.slots, trained.aloe.slot_dim, config.data, f"the model of {config.source}"
        )
    task = build_task(trained).eval()
    assert isinstance(task, VqaTask)
    task.aloe.load_state_dict(model.state_dict())
    return task, trained, "ALOE has no statistics to measure"


def settle(name: str, given: int, published: int, size: str) -> int:
    """An option, or its published value. UserError where `size` is none of the published ones (`published` is 0 or False)."""
    if not given and not published:
        raise UserError(f"{size} is no published size: give {name}=N")
    return given or published


def fitted(
    make: Callable[..., Any],
    names: Callable[[int], dict[str, str]],
    found: dict[str, Tensor],
    sizes: dict[str, int],
    source: str,
) -> Any:
    """The model that `make` makes of `found`. UserError, by the released names, for shapes and parameters that do not fit.

    What export would write of it must be what was read: so constants must be the released ones, and no layer may be left over.
    """
    try:
        model = make(found, **sizes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (RuntimeError, IndexError, KeyError) as error:
        text = " ".join(str(error).split())
        if match := re.search(
            r"size mismatch for (\S+): .*?\[([\d, ]*)\]\) from checkpoint.*?\[([\d, ]*)\]\)", text
        ):
            theirs = names(len(found))[match[1]]  # there are fewer layers than parameters
            text = f"{theirs} is ({match[2]}), by the other parameters it must be ({match[3]})"
        raise UserError(
            f"{source}: the shapes are not those of the released layout: {text:.300}"
        ) from error
    written = model.to_reference()
    parts = {name.split(".")[0] for name in written}
    if left := [name for name in found if name not in written and name.split(".")[0] in parts]:
        raise UserError(
            f"{source} has {left[0]}, which the released layout has not ({len(left)} such parameters)"
        )
    for name in written.keys() & found.keys():
        if not torch.isfinite(found[name]).all():
            raise UserError(f"{source}: {name} holds a value that is not finite")
        if not torch.equal(found[name].to(written[name].dtype), written[name]):
            raise UserError(
                f"{source}: {name} is {found[name].tolist()}, the released layout has {written[name].tolist()} there"
            )
    return model


@torch.no_grad()
def measure(task: WorldModelTask, source: InMemoryWindows, windows: int) -> int:
    """Set the task's sigma2 and tau, nothing hidden, on windows spread over the split; returns their number."""
    ids = np.linspace(0, len(source) - 1, min(windows, len(source))).astype(np.int64)
    history = task.config.predictor.history_frames
    for _ in range(2):  # the median is in units of the variance, which the first pass finds
        total = torch.zeros(())
        for part in np.array_split(ids, math.ceil(len(ids) / BATCH)):
            batch = to_device(source.gather(part, part), torch.device("cpu"))
            x, hidden = batch["slots"], torch.zeros(len(part), source.shape[1], dtype=torch.bool)
            total = total + task.statistics(
                task.predictor(x[:, :history], hidden), x, batch["present"]
            )
        task.update(total)
    return len(ids)


def describe(config: TrainWorldModel | TrainAloe) -> str:
    size: AloeConfig | PredictorConfig
    if isinstance(config, TrainAloe):
        size, time = config.aloe, f"{config.aloe.frames} frames, stride {config.stride}"
    else:
        size = config.predictor
        time = f"{size.history_frames} + {size.pred_frames} frames, frameskip {config.frameskip}"
    return f"{time}, {size.slots} slots x {size.slot_dim}, {size.depth} layers, {size.heads} heads"


if __name__ == "__main__":
    command_line.launch(ImportCheckpoint, main)
