"""Roll videos out from 128 to 160 frames: `python -m cjepa_dist.rollout world_model=RUN data=DIR out=DIR2 [mode=counterfactual]`.

slot shards + a trained world model ──> slot shards with the observed frames copied and the predicted ones appended;
                                        annotations, questions and truth are carried along, but the truth's worlds
mode=counterfactual                 ──> and worlds.npz: what would have happened without each object that a question removes
mode=free, factual                  ──> ... if everything is predicted from the first frames, if nothing else changes
mode=truth (simulated data)         ──> ... as the simulator says, and its true future: the ceiling of what reads a rollout
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import counterfactual_rollout
from cjepa_dist.checkpoint.loading import load_task
from cjepa_dist.config import command_line, schema
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, GraphConfig
from cjepa_dist.data.counterfactual_worlds import asked_slots, left_out, removed_slots, true_worlds
from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.device import default_device, native_precision
from cjepa_dist.tasks.world_model import WorldModelTask

MODES = ("future", "counterfactual", "free", "factual", "truth")
RULES = (
    "paired",
    "oracle",
    *GRAPH_ESTIMATORS[: GRAPH_ESTIMATORS.index("distance")],
    "full",
    "empty",
)


@dataclass
class Rollout:
    """Roll videos out with a trained world model: what comes next, and what would have happened without an object."""

    data: str = option(schema.MISSING, "folder of slot shards")
    out: str = option(schema.MISSING, "folder to write; must not exist, or hold the same rollout")
    world_model: str = option("", "run folder of a world model; only mode=truth needs none")
    mode: str = option(
        "future",
        "future alone, or with worlds.npz: counterfactual, all predicted, nothing changed, truth",
        choices=MODES,
    )
    count: int = option(32, "frames to predict", unit="frames", least=1)
    splits: list[str] = option([], "splits to roll out; none named = all")
    videos: int = option(0, "first so many videos of each split; 0 = all", unit="videos", least=0)
    all: bool = option(False, "without each object in turn, not only those that a question removes")
    divergence: str = option(
        "paired",
        "counterfactual: what says that the removal has reached a slot; oracle = the truth",
        choices=RULES,
    )
    graph: GraphConfig = option(
        GraphConfig, "counterfactual: settings of graphs; tau > 0 also that of `paired`, in nats"
    )
    precision: str = option(
        "auto", "of counterfactual predictions", choices=("auto", "bf16", "float32")
    )
    batch: int = option(16, "videos at once", unit="videos", least=1)
    workers: int = option(
        1,
        "processes that predict, each with its part of the cores; more than 1 on CPUs only",
        least=1,
    )
    shard_mb: int = option(256, "size of a shard", unit="MB", least=1)


def main(config: Rollout) -> int:
    if config.precision == "auto":
        config.precision = {"bf16": "bf16", "fp32": "float32"}[native_precision()]
    manifest = Manifest.load(config.data)
    source = describe(config, manifest)
    if (Path(config.out) / "manifest.json").exists() and Manifest.load(config.out).source == source:
        print(f"{config.out} already holds this rollout: nothing to do")
        return 0
    done, worlds, began = 0, 0, time.perf_counter()
    asked: list[int | None] = []
    with DatasetWriter(
        config.out,
        encoder=manifest.encoder,
        source=source,
        dtype=manifest.dtype,
        shard_mb=config.shard_mb,
        empty_slot=manifest.empty_slot,
    ) as writer:
        names = config.splits or list(manifest.splits)
        groups = (
            (name, group)
            for name in names
            for group in batched(
                read_split(config.data, name, videos=min(config.videos, manifest.count(name))),
                config.batch,
            )
        )
        for (name, group), rolled in predicted(config, manifest, groups):
            split = writer.split(name)
            for sample, (slots, world) in zip(group, rolled):
                split.add(
                    replace(sample, slots=slots, worlds=world, truth=without_worlds(sample.truth))
                )
                if world is not None:
                    worlds += len(world["removed"])
                    asked += [] if config.all else asked_slots(sample)
            done += len(group)
    rate = done / (time.perf_counter() - began)
    without = f", {worlds} worlds without an object" if config.mode != "future" else ""
    print(
        f"{done} videos rolled out to {manifest.frames + config.count} frames{without}: {rate:.1f} videos/s"
    )
    if None in asked:
        print(left_out(asked.count(None), len(asked)))
    return 0


def without_worlds(truth: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """The truth but for the simulator's worlds without an object: at 290 KB each they were two fifths of a rollout, and nobody reads them
    there."""
    return truth and {
        name: value for name, value in truth.items() if not name.startswith("counterfactual_")
    }


def describe(config: Rollout, manifest: Manifest) -> dict[str, Any]:
    """What the manifest keeps as source: everything that the slots depend on. Raises UserError for what does not fit together."""
    if unknown := [name for name in config.splits if name not in manifest.splits]:
        raise UserError(
            f"{config.data} has no split {', '.join(unknown)}; it has {', '.join(manifest.splits)}"
        )
    if config.mode not in ("future", "truth") and manifest.empty_slot is None:
        raise UserError(
            f"{config.data} does not say what its empty slot is, and mode={config.mode} puts it in the place of an object"
        )
    source: dict[str, Any] = {"kind": "rollout"}
    if config.mode != "truth":
        task, trained, step = load(config)
        if config.mode == "counterfactual" and not task.updates:
            print(
                f"warning: run {config.world_model} never measured its residuals: tau is 1; import the checkpoint with data=DIR",
                flush=True,
            )
        manifest.check_slots(
            trained.predictor.slots,
            trained.predictor.slot_dim,
            config.data,
            f"run {config.world_model}",
        )
        needed = trained.predictor.history_frames * trained.frameskip
        if needed > manifest.frames:
            raise UserError(f"{config.data} has {manifest.frames} frames, a rollout needs {needed}")
        source |= {"world_model": str(Path(config.world_model).resolve()), "step": step}
    source |= {
        "data": str(Path(config.data).resolve()),
        "count": config.count,
        "of": manifest.source,
    }
    if config.videos:
        source["videos"] = config.videos
    if config.mode != "future":
        source |= {"mode": config.mode, "all": config.all}
    if config.mode == "counterfactual":
        source |= {
            "divergence": config.divergence,
            "graph": dataclasses.asdict(config.graph),
            "precision": config.precision,
        }
    return source


def load(config: Rollout) -> tuple[WorldModelTask, Any, int]:
    if not config.world_model:
        raise UserError(
            f"missing: world_model=..., the run folder of a world model, which mode={config.mode} needs"
        )
    task, trained, step = load_task(config.world_model)
    if not isinstance(task, WorldModelTask):
        raise UserError(f"{config.world_model} is not a world model run")
    return task, trained, step


Job = tuple[str, list[Sample]]
Rolled = list[
    tuple[np.ndarray, dict[str, np.ndarray] | None]
]  # slots (T, S, D) and worlds.npz of each video


def predicted(
    config: Rollout, manifest: Manifest, jobs: Iterable[Job]
) -> Iterator[tuple[Job, Rolled]]:
    """Each group of videos with what was predicted, in order; `workers` processes run a bounded way ahead of the writer."""
    if config.mode == "truth":
        for job in jobs:
            yield job, [true_rollout(config, sample) for sample in job[1]]
    elif config.workers == 1:
        roller = Roller(config, manifest)
        for job in jobs:
            yield job, roller([needed(config, sample) for sample in job[1]])
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // config.workers)
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork of a process that has threads can deadlock
        waiting: deque[tuple[Job, Future[Rolled]]] = deque()
        with ProcessPoolExecutor(
            config.workers, context, initializer=begin, initargs=(config, manifest, threads)
        ) as pool:
            try:
                for job in jobs:
                    waiting.append(
                        (job, pool.submit(work, [needed(config, sample) for sample in job[1]]))
                    )
                    if len(waiting) > 2 * config.workers:
                        first, future = waiting.popleft()
                        yield first, future.result()
                for last, future in waiting:
                    yield last, future.result()
            finally:
                pool.shutdown(cancel_futures=True)


ROLLERS: list[Roller] = []  # the one of a worker process


def begin(config: Rollout, manifest: Manifest, threads: int) -> None:
    torch.set_num_threads(threads)
    ROLLERS.append(Roller(config, manifest))


def work(scenes: list[Scene]) -> Rolled:
    return ROLLERS[0](scenes)


@dataclass
class Scene:
    """What predicting needs of a video."""

    slots: np.ndarray  # (T, S, D) float32
    removed: list[int]  # slots
    diverged: np.ndarray | None = (
        None  # (n, S): of the truth's worlds without `removed`, where divergence=oracle
    )


def needed(config: Rollout, sample: Sample) -> Scene:
    assert sample.slots is not None
    scene = Scene(
        widen(sample.slots), [] if config.mode == "future" else removed_slots(sample, config.all)
    )
    if config.mode == "counterfactual" and config.divergence == "oracle":
        scene.diverged = true_worlds(sample, scene.removed)["diverged"]
    return scene


class Roller:
    """Predicts groups of videos."""

    def __init__(self, config: Rollout, manifest: Manifest) -> None:
        self.config = config
        self.device = default_device()
        task, trained, _ = load(config)
        self.task, self.frameskip = task.to(self.device).eval(), trained.frameskip
        self.empty = (
            None
            if manifest.empty_slot is None
            else torch.tensor(manifest.empty_slot, device=self.device)
        )

    @torch.inference_mode()
    def __call__(self, scenes: list[Scene]) -> Rolled:
        frames = torch.from_numpy(np.stack([scene.slots for scene in scenes])).to(self.device)
        slots = torch.cat(
            [frames, self.task.predictor.rollout(frames, self.config.count, self.frameskip)], dim=1
        )
        whole = slots.cpu().numpy()
        if self.config.mode == "future":
            return [(kept, None) for kept in whole]
        asked = [i for i, scene in enumerate(scenes) if scene.removed] or [0]
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        ):
            worlds, diverged = self.without(slots[asked], [scenes[i] for i in asked])
        sizes = [len(scene.removed) for scene in scenes]
        parts = zip(whole, scenes, worlds.cpu().split(sizes), diverged.cpu().split(sizes))
        return [
            (
                kept,
                {
                    "removed": np.array(s.removed, np.int8),
                    "slots": w.numpy(),
                    "diverged": d.numpy().astype(np.int16),
                },
            )
            for kept, s, w, d in parts
        ]

    def without(self, slots: Tensor, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """Worlds (W, T, S, D) and divergence (W, S) of all scenes, one after the other; slots (V, T, S, D)."""
        video = torch.tensor(
            [v for v, scene in enumerate(scenes) for _ in scene.removed],
            dtype=torch.long,
            device=self.device,
        )
        removed = torch.tensor(
            [slot for scene in scenes for slot in scene.removed],
            dtype=torch.long,
            device=self.device,
        )
        predictor, (_, length, count, _) = self.task.predictor, slots.shape
        context = self.task.graph_context(video[:0])
        expected, empty = slots, self.empty
        assert empty is not None  # `describe` has looked
        rule: counterfactual_rollout.Reached
        if self.config.mode != "counterfactual":
            at = 0 if self.config.mode == "free" else length
            rule = counterfactual_rollout.AtFrames(
                torch.full((len(video), count), at, device=self.device)
            )
        elif self.config.divergence == "oracle":
            frames = np.concatenate([s.diverged for s in scenes])
            rule = counterfactual_rollout.AtFrames(
                torch.from_numpy(frames).to(self.device), entered=True
            )
        elif self.config.divergence == "paired":
            expected = counterfactual_rollout.expected(predictor, slots, self.frameskip)
            tau = self.config.graph.tau or counterfactual_rollout.FACTOR * context.tau
            rule = counterfactual_rollout.Paired(
                context.sigma2, torch.as_tensor(tau, device=self.device)
            )
        else:
            graph = dataclasses.replace(self.config.graph, estimator=self.config.divergence)
            rule = counterfactual_rollout.ByGraph(predictor, graph, context, empty)
        return counterfactual_rollout.without(
            predictor, slots, expected, video, removed, rule, frameskip=self.frameskip, empty=empty
        )


def true_rollout(config: Rollout, sample: Sample) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Slots and worlds.npz of a simulated video: no model. Raises UserError where the truth does not reach so far."""
    worlds = true_worlds(sample, removed_slots(sample, config.all))
    assert sample.slots is not None and sample.truth is not None
    future = sample.truth["future_slots"]
    if config.count > len(future):
        raise UserError(
            f"count={config.count}: the truth of key {sample.key} has {len(future)} frames after those shown"
        )
    length = len(sample.slots) + config.count
    return np.concatenate([sample.slots, future[: config.count]]), worlds | {
        "slots": worlds["slots"][:, :length]
    }


def batched(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while group := list(islice(samples, size)):
        yield group


if __name__ == "__main__":
    command_line.launch(Rollout, main)
