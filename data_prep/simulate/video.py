"""Makes one simulated video from its settings. This is what a worker process does.

(seed, split, index) ──generate──> World ──encoder──> slots
                                     └──> annotation, questions, ground truth ──> SimulatedVideo

The shards are not imported here: they import torch, which takes two seconds per worker.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.clevrer.questions import removed_objects
from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES, VIDEO_FRAMES, History
from cjepa_dist.config.plugins import import_plugins
from cjepa_dist.runtime.processes import start_pool_worker
from data_prep.simulate import annotation, encoders, generation, ground_truth, world
from data_prep.simulate.questions.questions import make_questions
from data_prep.simulate.settings import SPLITS, Simulate, scene_indices, splits_with, video_key


@dataclass
class SimulatedVideo:
    """A finished video, and counts for the summary."""

    key: str
    slots: np.ndarray  # (VIDEO_FRAMES, S, D)
    annotation: annotation.Annotation
    questions: dict[str, Any] | None
    ground_truth: dict[str, np.ndarray]
    rejected: int  # worlds that were dropped before this one
    collisions: int  # in the video
    unseen: int  # collisions after it


def collect_garbage_rarely() -> None:
    """Run the cyclic garbage collector less often.

    An annotation has 10,000 small containers and no cycle among them.
    """
    gc.freeze()
    gc.set_threshold(500_000)


def start_worker(plugins: list[str]) -> None:
    """What a worker process does first."""
    start_pool_worker()
    import_plugins(plugins)
    collect_garbage_rarely()


def make_videos(config: Simulate, videos: list[tuple[str, int]]) -> list[SimulatedVideo]:
    """Several videos, in order: one job of a worker process."""
    return [make_video(config, split, index) for split, index in videos]


def make_video(config: Simulate, split: str, index: int) -> SimulatedVideo:
    """One video, a function of (seed, split, index) and the settings.

    No optional part of it changes another part.
    """
    world_rng, slot_rng, question_rng = (
        np.random.default_rng([config.seed, SPLITS.index(split), index, stream])
        for stream in range(3)
    )
    scene = generation.generate(world_rng)
    factual = world.history(scene)
    scene_index = scene_indices(config)[split] + index

    order = slot_rng.permutation(config.slots)
    slot_object, background = np.full(config.slots, -1), np.zeros(config.slots, bool)
    slot_object[order[: len(scene.objects)]] = np.arange(len(scene.objects))
    background[order[len(scene.objects)]] = True
    # One draw for all worlds of the video: a slot that a removal does not affect keeps its bits.
    noise = slot_rng.standard_normal(
        (GROUND_TRUTH_FRAMES, config.slots, config.slot_dim), np.float32
    )
    video_slots = ground_truth.encode_world(
        scene, slot_object, background, noise, config.encoder
    ).astype(config.dtype)

    worlds: dict[int, world.World] = {}
    simulate_without = counterfactual_histories(scene, worlds)
    questions = None
    if split in splits_with(config, "questions"):
        questions = make_questions(factual, simulate_without, scene_index, question_rng)

    arrays = ground_truth.scene_arrays(scene, slot_object, background)
    arrays["future_slots"] = video_slots[VIDEO_FRAMES:]
    arrays["empty_slot"] = encoders.empty_slot(config.encoder, config.slot_dim)
    if split in splits_with(config, "influence"):
        arrays["influence"] = ground_truth.influence_rows(
            scene, slot_object, config.influence_horizon
        )
        arrays["influence_horizon"] = np.int64(config.influence_horizon)
    if split in splits_with(config, "counterfactual_splits") and config.counterfactuals != "none":
        removed = list(range(len(scene.objects)))
        if config.counterfactuals == "in_questions":
            removed = removed_objects(questions, scene.objects) if questions else []
        for object_id in removed:
            simulate_without(object_id)
        arrays |= ground_truth.counterfactual_arrays(
            [worlds[r] for r in removed],
            slot_object,
            background,
            noise,
            config.encoder,
            config.dtype,
        )
    in_video = sum(collision.frame < VIDEO_FRAMES for collision in factual.collisions)
    return SimulatedVideo(
        video_key(config, split, index),
        video_slots[:VIDEO_FRAMES],
        annotation.annotate(scene, scene_index),
        questions,
        arrays,
        scene.rejected,
        in_video,
        len(factual.collisions) - in_video,
    )


def counterfactual_histories(
    scene: world.World, worlds: dict[int, world.World]
) -> Callable[[int], History]:
    """Object id -> history without it; each world is simulated once and kept in `worlds`."""
    histories: dict[int, History] = {}

    def simulate_without(removed: int) -> History:
        if removed not in histories:
            worlds[removed] = world.counterfactual(scene, removed)
            histories[removed] = world.history(worlds[removed])
        return histories[removed]

    return simulate_without
