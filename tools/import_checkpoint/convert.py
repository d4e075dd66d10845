"""Build a task and its training config from released parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cjepa_dist.clevrer.vocabulary import MAX_TEXT_WORDS
from cjepa_dist.config.schema import (
    AloeConfig,
    LoopConfig,
    PredictorConfig,
    TrainAloe,
    TrainConfig,
    TrainWorldModel,
)
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.models import aloe, predictor
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.tasks.build import Task, build_task
from cjepa_dist.tasks.vqa import VqaTask
from tools.import_checkpoint.released_file import C_JEPA
from tools.import_checkpoint.schema import ImportCheckpoint

# Time embeddings -> history frames, predicted frames, frameskip: the paper and its CTT follow-up.
PUBLISHED_FRAMES = {16: (6, 10, 2), 4: (3, 1, 5)}
NO_DATA = "(none: the run was imported; give data=DIR)"


def convert(
    kind: str, config: ImportCheckpoint, parameters: dict[str, Tensor], manifest: Manifest | None
) -> tuple[Task, TrainConfig]:
    """The task and its training config. Raises UserError for sizes that do not fit file or data."""
    model: Any
    train_config: TrainConfig
    if kind == C_JEPA:
        model, train_config = convert_world_model(config, parameters, manifest)
    else:
        model, train_config = convert_aloe(config, parameters, manifest)
    if manifest is not None:
        user = f"the model of {config.source}"
        manifest.check_slots(model.config.slots, model.config.slot_dim, config.data, user)
    task = build_task(train_config).eval()
    part = task.aloe if isinstance(task, VqaTask) else task.predictor
    part.load_state_dict(model.state_dict())
    return task, train_config


def convert_world_model(
    config: ImportCheckpoint, parameters: dict[str, Tensor], manifest: Manifest | None
) -> tuple[SlotPredictor, TrainWorldModel]:
    """The predictor and its training config."""
    time, released = parameters["time_pos_embed"], PredictorConfig()
    if time.ndim != 4:
        raise UserError(
            f"{config.source}: time_pos_embed is {tuple(time.shape)}, not (1, frames, 1, width)"
        )
    history, future = split_frames(config, time.shape[1])
    frameskip = next((s for *f, s in PUBLISHED_FRAMES.values() if f == [history, future]), 0)
    width = time.shape[3]
    is_published, size = width == released.slot_dim, f"slot_dim {width}"
    slots = config.slots or (manifest.slots if manifest else 0)
    sizes = {
        "history_frames": history,
        "pred_frames": future,
        "heads": given_or_published("heads", config.heads, is_published and released.heads, size),
        "slots": given_or_published("slots", slots, is_published and released.slots, size),
    }
    train_config = TrainWorldModel(
        data=config.data or NO_DATA,
        run=config.out,
        frameskip=given_or_published(
            "frameskip", config.frameskip, frameskip, f"{history} + {future} frames"
        ),
        loop=LoopConfig(epochs=0),  # it was trained elsewhere: there is nothing to continue
    )
    model = build_model(
        SlotPredictor.from_reference, predictor.reference_names, parameters, sizes, config.source
    )
    train_config.predictor = model.config
    return model, train_config


def convert_aloe(
    config: ImportCheckpoint, parameters: dict[str, Tensor], manifest: Manifest | None
) -> tuple[Aloe, TrainAloe]:
    """ALOE and its training config."""
    released = AloeConfig()
    position = parameters.get(name := "transformer_encoder.pos_embedding")
    if position is None:
        raise UserError(f"{config.source}: {name} is missing")
    if position.ndim != 3:
        shape = tuple(position.shape)
        raise UserError(f"{config.source}: {name} is {shape}, not (1, tokens, width)")
    tokens = position.shape[1] - 1 - MAX_TEXT_WORDS
    width = position.shape[2]
    frames, slots = split_tokens(config, tokens, manifest)
    train_config = TrainAloe(
        data=config.data or NO_DATA,
        run=config.out,
        stride=given_or_published(
            "stride",
            config.stride,
            frames == released.frames and TrainAloe.stride,
            f"{frames} frames a video",
        ),
        loop=LoopConfig(epochs=0),
    )
    heads = given_or_published(
        "heads", config.heads, width == released.width and released.heads, f"width {width}"
    )
    sizes = {"heads": heads, "frames": frames, "slots": slots}
    model = build_model(Aloe.from_reference, aloe.reference_names, parameters, sizes, config.source)
    train_config.aloe = model.config
    return model, train_config


def split_frames(config: ImportCheckpoint, total: int) -> tuple[int, int]:
    """(history frames, predicted frames) of a file with `total` time embeddings."""
    history, future = config.history_frames, config.pred_frames
    if not history and not future:
        if total not in PUBLISHED_FRAMES:
            raise UserError(
                f"{total} time embeddings are no published setting (16 or 4): "
                "give history_frames=N, the others are predicted"
            )
        history, future, _ = PUBLISHED_FRAMES[total]
    history, future = history or total - future, future or total - history
    if history < 1 or future < 1 or history + future != total:
        raise UserError(
            f"history_frames and pred_frames must add up to the file's {total} time embeddings, "
            f"not {history} + {future}"
        )
    return history, future


def split_tokens(
    config: ImportCheckpoint, tokens: int, manifest: Manifest | None
) -> tuple[int, int]:
    """(frames, slots) of a file with `tokens` position embeddings of slots."""
    released, frames, slots = AloeConfig(), config.frames, config.slots
    if not frames and not slots and tokens == released.frames * released.slots:
        frames, slots = released.frames, released.slots
    if not frames and not slots:
        known = manifest.slots if manifest else 0
        size = f"{tokens} positions of frames x slots"
        slots = given_or_published("frames=N or slots", known, 0, size)
    frames, slots = frames or tokens // slots, slots or tokens // frames
    if frames * slots != tokens:
        raise UserError(
            f"frames x slots must be the file's {tokens} positions, not {frames} x {slots}"
        )
    return frames, slots


def given_or_published(name: str, given: int, published: int, size: str) -> int:
    """The option `name` if it was given, else its published value.

    `published` is 0 or False where `size` is not a published one: then UserError asks for it.
    """
    if not given and not published:
        raise UserError(f"{size} is no published size: give {name}=N")
    return given or published


def build_model(
    from_reference: Callable[..., Any],
    reference_names: Callable[[int], dict[str, str]],
    parameters: dict[str, Tensor],
    sizes: dict[str, int],
    source: str,
) -> Any:
    """The model of the released `parameters`.

    An export of it must give back what was read. So buffers must have the released values, and
    no parameter may be left over. Raises UserError, with the released names, if they do not fit.
    """
    try:
        model = from_reference(parameters, **sizes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (RuntimeError, IndexError, KeyError) as error:
        reason = explain_mismatch(" ".join(str(error).split()), reference_names(len(parameters)))
        raise UserError(
            f"{source}: the shapes are not those of the released layout: {reason:.300}"
        ) from error
    exported = model.to_reference()
    parts = {name.split(".")[0] for name in exported}
    unknown = [name for name in parameters if name not in exported and name.split(".")[0] in parts]
    if unknown:
        raise UserError(
            f"{source} has {unknown[0]}, which the released layout does not have "
            f"({len(unknown)} such parameters)"
        )
    for name in exported.keys() & parameters.keys():
        value, expected = parameters[name], exported[name]
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {name} holds a value that is not finite")
        if not torch.equal(value.to(expected.dtype), expected):
            raise UserError(
                f"{source}: {name} is {value.tolist()}, "
                f"the released layout has {expected.tolist()} there"
            )
    return model


def explain_mismatch(text: str, reference_names: dict[str, str]) -> str:
    """torch's message about a wrong shape, with the parameter's released name."""
    match = re.search(
        r"size mismatch for (\S+): .*?\[([\d, ]*)\]\) from checkpoint.*?\[([\d, ]*)\]\)", text
    )
    if match is None:
        return text
    name = reference_names[match[1]]
    return f"{name} is ({match[2]}), by the other parameters it must be ({match[3]})"


def describe_sizes(config: TrainConfig) -> str:
    """The sizes of a run's model, in one line."""
    size: AloeConfig | PredictorConfig
    if isinstance(config, TrainAloe):
        size, time = config.aloe, f"{config.aloe.frames} frames, stride {config.stride}"
    else:
        size = config.predictor
        time = f"{size.history_frames} + {size.pred_frames} frames, frameskip {config.frameskip}"
    return f"{time}, {size.slots} slots x {size.slot_dim}, {size.depth} layers, {size.heads} heads"
