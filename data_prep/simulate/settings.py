"""The settings of a simulated data set: their schema, their checks, the scene indices they give."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES, VIDEO_FRAMES
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.plugins import import_plugins
from cjepa_dist.data.format.fingerprint import redo_option
from cjepa_dist.errors import UserError
from data_prep.partition import part_option, record_part
from data_prep.simulate.encoders import ENCODERS, empty_slot, find_encoder
from data_prep.simulate.generation import OBJECT_COUNTS

# Increase it whenever a seed gives other data than before. 2: other questions than 1, same worlds.
GENERATOR_VERSION = 2
SEALED = "sealed"  # for the end of a study: no recipe is chosen by it
SPLITS = ("train", "val", "test", SEALED)
# As in CLEVRER, which has nothing from 20,000 on.
FIRST_SCENE_INDEX = {"train": 0, "val": 10_000, "test": 15_000, SEALED: 20_000}
MIN_SLOTS = max(OBJECT_COUNTS) + 1  # a slot for each object and one for the background


@dataclass
class Simulate:
    """Simulate CLEVRER-style videos into slot shards: slots, questions, annotations, ground truth.

    180 frames are simulated; 128 are the video, and 160 have slots and ground truth. The view is 2
    wide, the radius of an object is 0.17; a rubber object has mass 1, a metal one 2. If `out`
    already holds the same data set, nothing is done. A run that was stopped resumes after its
    last full shard.
    """

    out: str = option(
        MISSING,
        "folder to write; it must be empty, missing, or hold the same data set",
        path=True,
    )
    train: int = option(200, "videos of the train split", unit="videos", least=0)
    val: int = option(50, "videos of the val split", unit="videos", least=0)
    test: int = option(50, "videos of the test split", unit="videos", least=0)
    sealed: int = option(
        0,
        "videos of the sealed split, with all that the others may have; no training takes it",
        unit="videos",
        least=0,
    )
    seed: int = option(
        0, "seed of everything except the frozen map from state to slot", least=0, most=MAX_SEED
    )
    encoder: str = option(
        "clean",
        "clean: noise 0.02; noisy: noise 0.1; occluded: noise 0.02, and an object behind another"
        " shows the empty slot; plugins can add encoders",
        choices=ENCODERS,
    )
    plugins: list[str] = option(
        [], "Python modules to import first, such as one that registers an encoder"
    )
    slots: int = option(
        7,
        "slots per frame: up to 6 objects, the background, the rest empty",
        unit="slots",
        least=MIN_SLOTS,
    )
    slot_dim: int = option(128, "numbers per slot; built-in encoders need 32 or more", least=1)
    questions: str = option("train,val,test", "splits with questions, separated by commas, or none")
    counterfactuals: str = option(
        "in_questions",
        "counterfactual worlds to store: for each object that a question removes, for each object,"
        " or none",
        choices=("in_questions", "all", "none"),
    )
    counterfactual_splits: str = option(
        "val,test", "splits for which they are stored (290 KB per world), or none"
    )
    influence: str = option(
        "val,test", "splits with the ground truth of influence (slow: it simulates again), or none"
    )
    influence_horizon: int = option(
        5, "influence is the effect of a removal after so many frames", unit="video frames", least=1
    )
    dtype: str = option("float16", "stored type of the slots", choices=("float16", "float32"))
    shard_mb: int = option(
        256, "size at which a new shard begins", unit="MiB", least=1, most=1 << 20
    )
    part: str = part_option()
    redo: bool = redo_option()
    workers: int = option(
        0, "processes; 0 = one per core that this process may use", least=0, most=4096
    )


def check_settings(config: Simulate) -> None:
    """Import the plugins. UserError for wrong settings that the types of the fields allow."""
    import_plugins(config.plugins)
    empty_slot(config.encoder, config.slot_dim)
    for name in ("questions", "counterfactual_splits", "influence"):
        unknown = [s for s in parse_list(getattr(config, name)) if s not in SPLITS]
        if unknown:
            raise UserError(
                f"config field {name}={getattr(config, name)!r}: {unknown[0]!r} is no split;"
                f" splits are {', '.join(SPLITS)}"
            )
    most = GROUND_TRUTH_FRAMES - VIDEO_FRAMES
    if config.influence_horizon > most:
        raise UserError(
            f"config field influence_horizon={config.influence_horizon}: must be at most {most}"
        )
    if not any(getattr(config, split) for split in SPLITS):
        raise UserError(f"{', '.join(SPLITS)} are all 0; there is nothing to simulate")


def manifest_source(config: Simulate) -> dict[str, Any]:
    """The `source` of the manifest: everything that the videos depend on."""
    settings = dataclasses.asdict(config)
    for name in ("out", "workers", "part", "redo"):
        del settings[name]
    if not config.sealed:  # a data set from before there was this split is the same
        del settings["sealed"]
    for name in ("questions", "counterfactual_splits", "influence"):
        settings[name] = parse_list(settings[name])
    return record_part(
        {
            "made_by": "data_prep.simulate",
            "version": GENERATOR_VERSION,
            "encoder_version": find_encoder(config.encoder).version,
            **settings,
        },
        config.part,
    )


def parse_list(text: str) -> list[str]:
    """'val, test' -> ['val', 'test']; 'none' -> []."""
    return [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]


def splits_with(config: Simulate, what: str) -> list[str]:
    """The splits that have what the field `what` names; the sealed one has everything."""
    return [*parse_list(getattr(config, what)), SEALED]


def scene_indices(config: Simulate) -> dict[str, int]:
    """First scene index of each split: as in CLEVRER if they fit, else one after the other."""
    starts = list(FIRST_SCENE_INDEX.values())
    counts = [getattr(config, split) for split in SPLITS]
    # The last split that has videos may be of any size.
    last = max((i for i, count in enumerate(counts) if count), default=0)
    if all(counts[i] <= starts[i + 1] - starts[i] for i in range(last)):
        return FIRST_SCENE_INDEX
    return {split: sum(counts[:i]) for i, split in enumerate(SPLITS)}


def video_key(config: Simulate, split: str, index: int) -> str:
    """`video_00012`: 12 is the scene index."""
    return f"video_{scene_indices(config)[split] + index:05d}"
