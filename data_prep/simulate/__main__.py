"""Simulate a CLEVRER-style world into slot shards.

    (seed, split, index) ──workers, video.py──> Video ──in order──> DatasetWriter (this process)

Every video is a function of (seed, split, index): of neither the number of workers nor the sizes of the splits
(which only set its scene index).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.clevrer.scene import SHOWN, TRUTH_FRAMES
from cjepa_dist.config.command_line import launch
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from data_prep.parts import share, with_part
from data_prep.progress import Progress
from data_prep.simulate import slots as encoder
from data_prep.simulate.video import (
    SPLITS,
    VERSION,
    Simulate,
    Video,
    listed,
    make_chunk,
    make_video,
    rare_collections,
    video_key,
)

CHUNK = 8  # videos a job


def main(config: Simulate) -> int:
    """Write the data set; 0 also if it is there already. UserError if `out` holds anything else or a setting makes no sense."""
    check(config)
    source = describe(config)
    if (Path(config.out) / "manifest.json").exists():
        if Manifest.load(config.out).source == source:
            print(f"{config.out} already holds this data set")
            return 0
        raise UserError(
            f"{config.out} holds a data set made with other settings; choose another out=, or remove it first"
        )
    rare_collections()
    began, totals = time.monotonic(), np.zeros(3, np.int64)
    videos = share(
        [(split, index) for split in SPLITS for index in range(getattr(config, split))], config.part
    )
    empty = encoder.empty_slot(config.slot_dim)
    name, size = encoder.encoder_name(config.tier), config.shard_mb
    with DatasetWriter(
        config.out,
        encoder=name,
        source=source,
        dtype=config.dtype,
        shard_mb=size,
        empty_slot=empty,
        resume=source,
    ) as writer:
        todo = [
            (split, index)
            for split, index in videos
            if video_key(config, split, index) not in writer.split(split).known
        ]
        progress = Progress(len(todo))
        for (split, _), video in zip(todo, produce(config, todo)):
            writer.split(split).add(
                Sample(
                    video.key, video.slots, video.annotation.json(), video.questions, video.truth
                )
            )
            totals += video.rejected, video.collisions, video.unseen
            progress.add()
    seconds, done = time.monotonic() - began, progress.done
    rejected, collisions, unseen = (totals / max(1, done)).tolist()
    print(
        f"{config.out}: {done} videos in {seconds:.1f} s, {60 * done / seconds:.0f} videos/min; a video has {collisions:.2f} "
        f"collisions and {unseen:.2f} after its end; {rejected:.2f} worlds a video were dropped"
    )
    return 0


def check(config: Simulate) -> None:
    """UserError for settings that the field types let through."""
    for name in ("questions", "counterfactual_splits", "influence"):
        unknown = [s for s in listed(getattr(config, name)) if s not in SPLITS]
        if unknown:
            raise UserError(
                f"config field {name}={getattr(config, name)!r}: {unknown[0]!r} is no split; splits are {', '.join(SPLITS)}"
            )
    if config.influence_horizon > TRUTH_FRAMES - SHOWN:
        raise UserError(
            f"config field influence_horizon={config.influence_horizon}: must be at most {TRUTH_FRAMES - SHOWN}"
        )
    if not any(getattr(config, split) for split in SPLITS):
        raise UserError("train, val and test are all 0; there is nothing to simulate")


def describe(config: Simulate) -> dict[str, Any]:
    """What the manifest keeps as source: everything that the videos depend on."""
    settings = dataclasses.asdict(config)
    for name in ("out", "workers", "part"):
        del settings[name]
    for name in ("questions", "counterfactual_splits", "influence"):
        settings[name] = listed(settings[name])
    return with_part(
        {
            "made_by": "data_prep.simulate",
            "version": VERSION,
            "map_version": encoder.MAP_VERSION,
            **settings,
        },
        config.part,
    )


def produce(config: Simulate, videos: list[tuple[str, int]]) -> Iterator[Video]:
    """The videos in order, made by `workers` processes that run a bounded way ahead."""
    workers = min(config.workers or len(os.sched_getaffinity(0)), max(1, len(videos) // CHUNK))
    if workers == 1:
        for split, index in videos:
            yield make_video(config, split, index)
        return
    chunks = collections.deque(videos[i : i + CHUNK] for i in range(0, len(videos), CHUNK))
    jobs: collections.deque[Future[list[Video]]] = collections.deque()
    context = multiprocessing.get_context(
        "spawn"
    )  # forking a process that has threads (BLAS, torch) can deadlock
    with (
        one_thread(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=rare_collections) as pool,
    ):
        try:
            while chunks or jobs:
                while chunks and len(jobs) < 3 * workers:
                    jobs.append(pool.submit(make_chunk, config, chunks.popleft()))
                yield from jobs.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); try fewer workers="
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Worker processes that start inside use one BLAS thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    launch(Simulate, main)
