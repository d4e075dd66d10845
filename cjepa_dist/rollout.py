"""Roll videos out: `python -m cjepa_dist.rollout world_model=RUN data=DIR out=DIR2 [mode=...]`.

    slot shards, a trained world model ──> slot shards with predicted frames after the observed ones

Annotations, questions and ground truth are copied, except for the simulator's worlds. The modes:

    future          only the predicted frames
    counterfactual  also worlds.npz: the worlds without each object that a question removes
    free            these worlds, if everything is predicted from the first frames on
    factual         these worlds, if nothing but the removed object changes
    truth           the simulator's own future and worlds: the upper bound for readers of a rollout
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cjepa_dist.causal.video_rollout import RolloutInput, RolloutOutput, RolloutPredictor
from cjepa_dist.checkpoint.run import load_run
from cjepa_dist.config import command_line, schema
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, GraphConfig
from cjepa_dist.data.counterfactual_worlds import describe_missing_worlds, simulated_worlds
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.fingerprint import (
    Fingerprint,
    check_not_input,
    dataset_fingerprint,
    differences,
    holds_already,
    redo_option,
)
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.reader import batched, open_videos, read_sample
from cjepa_dist.data.format.sample import ANNOTATION, Sample
from cjepa_dist.data.format.storage import recorded_place
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.data.removed_slots import removed_slots, slots_removed_by_questions
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.device import default_device, native_precision
from cjepa_dist.runtime.processes import start_pool_worker
from cjepa_dist.runtime.progress import Progress
from cjepa_dist.tasks.world_model import WorldModelTask

MODES = ("future", "counterfactual", "free", "factual", "truth")

DIVERGENCE_RULES = (
    "paired",
    "oracle",
    *GRAPH_ESTIMATORS[: GRAPH_ESTIMATORS.index("distance")],
    "full",
    "empty",
)


@dataclass
class Rollout:
    """Roll videos out with a trained world model: their future, and worlds without an object."""

    data: str = option(schema.MISSING, "folder of slot shards", path=True)
    out: str = option(
        schema.MISSING, "folder to write: missing, empty, or with the same rollout", path=True
    )
    world_model: str = option(
        "", "run directory of a world model; not needed for mode=truth", path=True
    )
    mode: str = option("future", "what to predict, see above", choices=MODES)
    future_frames: int = option(32, "frames to predict after the video", unit="frames", least=1)
    splits: list[str] = option([], "splits to roll out; empty = all")
    videos: int = option(
        0, "number of videos per split, from the first on; 0 = all", unit="videos", least=0
    )
    all_objects: bool = option(
        False, "a world without every object, not only without those that a question removes"
    )
    divergence: str = option(
        "paired",
        "counterfactual: the rule that says which slots the removal has reached; oracle = the "
        "ground truth",
        choices=DIVERGENCE_RULES,
    )
    graph: GraphConfig = option(
        GraphConfig, "counterfactual: settings of graphs; tau > 0 is also that of `paired`"
    )
    precision: str = option(
        "auto", "of counterfactual predictions", choices=("auto", "bf16", "float32")
    )
    batch_size: int = option(64, "videos per batch", unit="videos", least=1)
    workers: int = option(
        1,
        "processes that predict, which share the cores; more than 1 only without a GPU",
        least=1,
        most=4096,
    )
    shard_mb: int = option(256, "size of a shard", unit="MB", least=1, most=1 << 20)
    redo: bool = redo_option()
    replace_stale: bool = option(
        False,
        "as redo=true where `out` holds the same rollout by an earlier model of this run; for"
        " experiments, which own the folder",
    )


Group = tuple[str, list[Sample]]  # name of a split, and consecutive videos of it


def main(config: Rollout) -> int:
    if config.precision == "auto":
        config.precision = {"bf16": "bf16", "fp32": "float32"}[native_precision()]
    manifest = Manifest.load(config.data)
    check_not_input(config.out, config.data, config.world_model)
    source = rollout_source(config, manifest)
    if config.replace_stale and is_stale(config.out, source["fingerprint"]):
        print(f"{config.out} is of an earlier model of {config.world_model}: made anew", flush=True)
        config.redo = True
    if holds_already(config.out, source, redo=config.redo):
        print(f"{config.out} already holds this rollout: nothing to do")
        return 0
    videos, worlds, began = 0, 0, time.perf_counter()
    # The slots that questions remove, None if no slot holds the object.
    asked: list[int | None] = []
    progress = Progress(count_videos(config, manifest))
    with DatasetWriter(
        config.out,
        encoder=manifest.encoder,
        source=source,
        dtype=manifest.dtype,
        shard_mb=config.shard_mb,
        empty_slot=manifest.empty_slot,
        redo=config.redo,
    ) as writer:
        for (name, samples), outputs in predict_groups(
            config, manifest, read_groups(config, manifest), source["fingerprint"]
        ):
            split = writer.split(name)
            for sample, (slots, arrays) in zip(samples, outputs):
                truth = drop_simulated_worlds(sample.truth)
                split.add(replace(sample, slots=slots, worlds=arrays, truth=truth))
                if arrays is not None:
                    worlds += len(arrays["removed"])
                    asked += [] if config.all_objects else slots_removed_by_questions(sample)
            videos += len(samples)
            progress.add(count=len(samples))
    rate = videos / (time.perf_counter() - began)
    also = f", {worlds} worlds without an object" if config.mode != "future" else ""
    frames = manifest.frames + config.future_frames
    print(f"{videos} videos rolled out to {frames} frames{also}: {rate:.1f} videos/s")
    if None in asked:
        print(describe_missing_worlds(asked.count(None), len(asked)))
    return 0


def is_stale(out: str, now: Fingerprint) -> bool:
    """Whether `out` holds the rollout `now`, but by another model that the same run has held."""
    if not (Path(out) / MANIFEST_NAME).exists():
        return False
    before = Manifest.load(out).source.get("fingerprint")
    if not isinstance(before, dict) or "world_model" not in now:
        return False
    models = [made.get("world_model") for made in (before, now)]
    if not all(isinstance(model, dict) for model in models) or models[0] == models[1]:
        return False
    old, new = ({**made, "world_model": made["world_model"].get("run")} for made in (before, now))
    return not differences(old, new)


def count_videos(config: Rollout, manifest: Manifest) -> int:
    counts = [manifest.count(name) for name in config.splits or manifest.splits]
    return sum(min(config.videos or count, count) for count in counts)


def read_groups(config: Rollout, manifest: Manifest) -> Iterator[Group]:
    for name in config.splits or manifest.splits:
        count = min(config.videos, manifest.count(name))
        for samples in batched(read_videos(config.data, manifest, name, count), config.batch_size):
            yield name, samples


def read_videos(data: str, manifest: Manifest, split: str, count: int) -> Iterator[Sample]:
    """The first `count` videos of a split with all they hold, 0 = all.

    Annotations are copied as they are: most of one is motion, and to parse and write it takes as
    long as to predict the video. Of its fields only those that name the objects are read.
    """
    for shard, key in open_videos(data, split, count):
        sample = read_sample(
            shard, key, manifest, annotation_fields=("scene_index", "object_property")
        )
        if (stored := shard.read_bytes(key, ANNOTATION)) is not None:
            sample.stored[ANNOTATION] = stored
        yield sample


def drop_simulated_worlds(truth: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """Ground truth without the simulator's worlds, which nobody reads from a rollout.

    At 290 KB each, they would be two fifths of its size.
    """
    return truth and {
        name: value for name, value in truth.items() if not name.startswith("counterfactual_")
    }


def rollout_source(config: Rollout, manifest: Manifest) -> dict[str, Any]:
    """The `source` of the manifest: everything that the slots depend on.

    Raises UserError where data, world model and settings do not fit together.
    """
    if unknown := [name for name in config.splits if name not in manifest.splits]:
        raise UserError(
            f"{config.data} has no split {', '.join(unknown)}; it has {', '.join(manifest.splits)}"
        )
    if config.mode not in ("future", "truth") and manifest.empty_slot is None:
        raise UserError(
            f"{config.data} does not say what its empty slot is, which mode={config.mode} puts in "
            "the place of an object"
        )
    if is_rollout(manifest.source):
        raise UserError(
            f"{config.data} is a rollout: its last frames are predictions already; give data="
            f"{manifest.source.get('data', '...')}, which it was made from"
        )
    source: dict[str, Any] = {"kind": "rollout"}
    data = dataset_fingerprint(manifest, config.splits, config.videos)
    fingerprint: Fingerprint = {"data": data, "splits": list(config.splits or manifest.splits)}
    if config.mode != "truth":
        task, trained, step, model = load_world_model(config)
        if config.mode == "counterfactual" and not task.updates:
            print(
                f"warning: run {config.world_model} has no residual statistics: tau is 1; import "
                "the checkpoint with data=DIR",
                flush=True,
            )
        size = trained.predictor
        manifest.check_slots(size.slots, size.slot_dim, config.data, f"run {config.world_model}")
        needed = size.history_frames * trained.frameskip
        if needed > manifest.frames:
            raise UserError(f"{config.data} has {manifest.frames} frames, a rollout needs {needed}")
        source |= {"world_model": str(Path(config.world_model).resolve()), "step": step}
        # The path too: results on this rollout are written into the run that it names.
        fingerprint["world_model"] = {"run": source["world_model"], "step": step, **model}
    source["data"] = recorded_place(config.data)
    settings: dict[str, Any] = {"future_frames": config.future_frames}
    if config.videos:
        settings["videos"] = config.videos
    if config.mode != "future":
        settings |= {"mode": config.mode, "all_objects": config.all_objects}
    if config.mode == "counterfactual":
        settings |= {
            "divergence": config.divergence,
            "graph": dataclasses.asdict(config.graph),
            "precision": config.precision,
        }
    source |= {**settings, "of": manifest.source}
    source["fingerprint"] = {"mode": config.mode, **settings, **fingerprint}
    return source


def is_rollout(source: dict[str, Any]) -> bool:
    """Whether a data set of this `source` holds predictions, or was made of one that does."""
    of = source.get("of")
    return source.get("kind") == "rollout" or (isinstance(of, dict) and is_rollout(of))


def load_world_model(config: Rollout) -> tuple[WorldModelTask, Any, int, Fingerprint]:
    if not config.world_model:
        raise UserError(
            "missing: world_model=..., the run directory of a world model, which "
            f"mode={config.mode} needs"
        )
    task, trained, step, fingerprint = load_run(config.world_model)
    if not isinstance(task, WorldModelTask):
        raise UserError(f"{config.world_model} is not a world model run")
    return task, trained, step, fingerprint


def predict_groups(
    config: Rollout, manifest: Manifest, groups: Iterable[Group], made_from: Fingerprint
) -> Iterator[tuple[Group, list[RolloutOutput]]]:
    """Each group with its predictions, in order; at most two groups per worker wait."""
    if config.mode == "truth":
        for group in groups:
            yield group, [simulated_rollout(config, sample) for sample in group[1]]
    elif config.workers == 1:
        predictor = make_predictor(config, manifest, made_from)
        for group in groups:
            yield group, predictor([rollout_input(config, sample) for sample in group[1]])
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // config.workers)
        # Not forked: a fork of a process that has threads can deadlock.
        context = multiprocessing.get_context("spawn")
        waiting: deque[tuple[Group, Future[list[RolloutOutput]]]] = deque()
        with ProcessPoolExecutor(
            config.workers,
            context,
            initializer=start_worker,
            initargs=(config, manifest, made_from, threads),
        ) as pool:
            try:
                for group in groups:
                    inputs = [rollout_input(config, sample) for sample in group[1]]
                    waiting.append((group, pool.submit(predict_in_worker, inputs)))
                    if len(waiting) > 2 * config.workers:
                        done, future = waiting.popleft()
                        yield done, future.result()
                for done, future in waiting:
                    yield done, future.result()
            finally:
                pool.shutdown(cancel_futures=True)


WORKER_PREDICTOR: list[RolloutPredictor] = []  # of a worker process


def start_worker(config: Rollout, manifest: Manifest, made_from: Fingerprint, threads: int) -> None:
    start_pool_worker()
    torch.set_num_threads(threads)
    WORKER_PREDICTOR.append(make_predictor(config, manifest, made_from))


def predict_in_worker(videos: list[RolloutInput]) -> list[RolloutOutput]:
    return WORKER_PREDICTOR[0](videos)


def make_predictor(config: Rollout, manifest: Manifest, made_from: Fingerprint) -> RolloutPredictor:
    """Raises UserError where the run has another checkpoint than `made_from` says by now."""
    device = default_device()
    task, trained, step, model = load_world_model(config)
    if (model | {"step": step}).items() - made_from["world_model"].items():
        raise UserError(
            f"run {config.world_model} has written another checkpoint meanwhile: roll out again,"
            " best when it has ended"
        )
    task.to(device).eval()
    empty = manifest.empty_slot
    return RolloutPredictor(
        task.predictor,
        task.graph_context(torch.zeros(0, dtype=torch.long, device=device)),
        None if empty is None else torch.tensor(empty, device=device),
        frameskip=trained.frameskip,
        future_frames=config.future_frames,
        mode=config.mode,
        divergence=config.divergence,
        graph=config.graph,
        bf16=config.precision == "bf16",
    )


def rollout_input(config: Rollout, sample: Sample) -> RolloutInput:
    removed = [] if config.mode == "future" else removed_slots(sample, config.all_objects)
    video = RolloutInput(to_float32(np.asarray(sample.slots)), removed)
    if config.mode == "counterfactual" and config.divergence == "oracle":
        video.diverged = simulated_worlds(sample, removed)["diverged"]
    return video


def simulated_rollout(config: Rollout, sample: Sample) -> RolloutOutput:
    """The simulator's own future and worlds. Raises UserError if the ground truth is too short."""
    worlds = simulated_worlds(sample, removed_slots(sample, config.all_objects))
    assert sample.slots is not None and sample.truth is not None
    future = sample.truth["future_slots"]
    if config.future_frames > len(future):
        raise UserError(
            f"future_frames={config.future_frames}: the ground truth of key {sample.key} has "
            f"{len(future)} frames after the video"
        )
    slots = np.concatenate([sample.slots, future[: config.future_frames]])
    return slots, worlds | {"slots": worlds["slots"][:, : len(slots)]}


if __name__ == "__main__":
    command_line.launch(Rollout, main)
