"""One simulated video from its settings: what a worker process does.

(seed, split, index) ──> world.generate ──> slots.encode ──> annotation, truth, questions ──> Video

The shards are not imported here: they bring torch, two seconds a worker.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import MISSING

from cjepa_dist.clevrer.questions import removed_objects
from cjepa_dist.clevrer.scene import SHOWN, TRUTH_FRAMES, History
from cjepa_dist.config.fields import option
from data_prep.parts import part_option
from data_prep.simulate import slots as encoder
from data_prep.simulate import truth, world
from data_prep.simulate.questions import make_questions

VERSION = 2  # of all that a seed gives: change it whenever that changes (2: other questions than 1, the same worlds)
SPLITS = ("train", "val", "test")
FIRST_SCENE = {"train": 0, "val": 10_000, "test": 15_000}  # CLEVRER's numbers
FEWEST_SLOTS = max(world.OBJECTS) + 1  # a slot for each object and one for the background


@dataclass
class Simulate:
    """Simulate a CLEVRER-style world into slot shards: slots, questions, annotations and truth.

    180 frames a video, of which 128 are shown and 160 have truth. The view is 2 wide, the radius of an object is 0.17; a rubber
    object has mass 1, a metal one 2. If `out` already holds the same data set, nothing is done; a
    run that was stopped goes on from its last whole shard.
    """

    out: str = option(
        MISSING, "folder to write; it must be empty, missing, or hold the same data set"
    )
    train: int = option(200, "videos of the train split", unit="videos", least=0)
    val: int = option(50, "videos of the val split", unit="videos", least=0)
    test: int = option(50, "videos of the test split", unit="videos", least=0)
    seed: int = option(0, "seed of everything but the frozen map from state to slot", least=0)
    tier: str = option(
        "clean",
        "difficulty: noise 0.02, noise 0.1, or noise 0.02 and hidden objects show the empty slot",
        choices=tuple(encoder.NOISE),
    )
    slots: int = option(
        7,
        "slots a frame: up to 6 objects, the background, the rest empty",
        unit="slots",
        least=FEWEST_SLOTS,
    )
    slot_dim: int = option(128, "numbers a slot", least=encoder.FEATURES)
    questions: str = option("train,val,test", "splits with questions, separated by commas, or none")
    counterfactuals: str = option(
        "asked",
        "worlds stored: without the objects that questions remove, without each, or none",
        choices=("asked", "all", "none"),
    )
    counterfactual_splits: str = option(
        "val,test", "splits for which they are stored (290 KB a world), or none"
    )
    influence: str = option(
        "val,test", "splits with influence truth (it costs re-simulation), or none"
    )
    influence_horizon: int = option(
        5, "influence is the effect of a removal after so many frames", unit="video frames", least=1
    )
    dtype: str = option("float16", "stored type of the slots", choices=("float16", "float32"))
    shard_mb: int = option(256, "size at which a new shard begins", unit="MiB", least=1)
    part: str = part_option()
    workers: int = option(0, "processes; 0 = one a core this process may use", least=0)


@dataclass
class Video:
    """A finished video and what was counted on the way."""

    key: str
    slots: np.ndarray  # (SHOWN, S, D)
    annotation: truth.Annotation
    questions: dict[str, Any] | None
    truth: dict[str, np.ndarray]
    rejected: int
    collisions: int
    unseen: int


def rare_collections() -> None:
    """Let the cyclic collector look less often: an annotation is 10,000 small containers, none in a cycle."""
    gc.freeze()
    gc.set_threshold(500_000)


def listed(text: str) -> list[str]:
    """'val, test' -> ['val', 'test']; 'none' -> []."""
    return [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]


def scene_indices(config: Simulate) -> dict[str, int]:
    """First scene index of each split: CLEVRER's where the splits fit, else one after the other."""
    if (
        config.train <= FIRST_SCENE["val"]
        and config.val <= FIRST_SCENE["test"] - FIRST_SCENE["val"]
    ):
        return FIRST_SCENE
    return {"train": 0, "val": config.train, "test": config.train + config.val}


def video_key(config: Simulate, split: str, index: int) -> str:
    """`video_00012`: 12 is the scene index."""
    return f"video_{scene_indices(config)[split] + index:05d}"


def make_chunk(config: Simulate, videos: list[tuple[str, int]]) -> list[Video]:
    """Several videos, in order."""
    return [make_video(config, split, index) for split, index in videos]


def make_video(config: Simulate, split: str, index: int) -> Video:
    """One video: a function of (seed, split, index) and of what is asked for. Adding a member never changes another one."""
    world_rng, slot_rng, question_rng = (
        np.random.default_rng([config.seed, SPLITS.index(split), index, stream])
        for stream in range(3)
    )
    scene = world.generate(world_rng)
    factual = world.history(scene)
    scene_index = scene_indices(config)[split] + index

    order = slot_rng.permutation(config.slots)
    slot_object, background = np.full(config.slots, -1), np.zeros(config.slots, bool)
    slot_object[order[: len(scene.objects)]] = np.arange(len(scene.objects))
    background[order[len(scene.objects)]] = True
    noise = encoder.draw_noise(slot_rng, TRUTH_FRAMES, config.slots, config.slot_dim, config.tier)
    video_slots = truth.world_slots(scene, slot_object, background, noise, config.tier).astype(
        config.dtype
    )

    worlds: dict[int, world.World] = {}
    without = counterfactual_histories(scene, worlds)
    questions = None
    if split in listed(config.questions):
        questions = make_questions(factual, without, scene_index, question_rng)

    arrays = truth.scene_truth(scene, slot_object, background)
    arrays["future_slots"] = video_slots[SHOWN:]
    arrays["empty_slot"] = encoder.empty_slot(config.slot_dim)
    if split in listed(config.influence):
        arrays["influence"] = truth.influence_rows(scene, slot_object, config.influence_horizon)
        arrays["influence_horizon"] = np.int64(config.influence_horizon)
    if split in listed(config.counterfactual_splits) and config.counterfactuals != "none":
        removed = list(range(len(scene.objects)))
        if config.counterfactuals == "asked":
            removed = removed_objects(questions, scene.objects) if questions else []
        for which in removed:
            without(which)
        arrays |= truth.counterfactual_truth(
            [worlds[r] for r in removed], slot_object, background, noise, config.tier, config.dtype
        )
    shown = sum(collision.frame < SHOWN for collision in factual.collisions)
    return Video(
        video_key(config, split, index),
        video_slots[:SHOWN],
        truth.annotation(scene, scene_index),
        questions,
        arrays,
        scene.rejected,
        shown,
        len(factual.collisions) - shown,
    )


def counterfactual_histories(
    scene: world.World, worlds: dict[int, world.World]
) -> Callable[[int], History]:
    """Object id -> history without it; each world is simulated once and kept in `worlds`."""
    histories: dict[int, History] = {}

    def without(removed: int) -> History:
        if removed not in histories:
            worlds[removed] = world.counterfactual(scene, removed)
            histories[removed] = world.history(worlds[removed])
        return histories[removed]

    return without
