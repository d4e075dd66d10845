"""Simulates CLEVRER-style videos into slot shards: `python -m data_prep.simulate out=DIR`.

    (seed, split, index) ──workers──> SimulatedVideo ──in order──> DatasetWriter (this process)

A video is a function of (seed, split, index). It does not depend on the number of workers. The
sizes of the splits only set its scene index.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from cjepa_dist.config.command_line import launch
from cjepa_dist.data.format.fingerprint import holds_already
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.progress import Progress
from data_prep.partition import select_part
from data_prep.simulate.encoders import empty_slot, manifest_name
from data_prep.simulate.settings import (
    SPLITS,
    Simulate,
    check_settings,
    manifest_source,
    video_key,
)
from data_prep.simulate.video import (
    SimulatedVideo,
    collect_garbage_rarely,
    make_video,
    make_videos,
    start_worker,
)

VIDEOS_PER_JOB = 8


def main(config: Simulate) -> int:
    """Write the data set, unless it is there already.

    Raises UserError if `out` holds anything else, or for a wrong setting.
    """
    check_settings(config)
    source = manifest_source(config)
    if holds_already(config.out, source, redo=config.redo):
        print(f"{config.out} already holds this data set")
        return 0
    collect_garbage_rarely()
    began, totals = time.monotonic(), np.zeros(3, np.int64)
    videos = select_part(
        [(split, index) for split in SPLITS for index in range(getattr(config, split))], config.part
    )
    with DatasetWriter(
        config.out,
        encoder=manifest_name(config.encoder),
        source=source,
        dtype=config.dtype,
        shard_mb=config.shard_mb,
        empty_slot=empty_slot(config.encoder, config.slot_dim),
        resume=source,
        redo=config.redo,
    ) as writer:
        todo = [
            (split, index)
            for split, index in videos
            if video_key(config, split, index) not in writer.split(split).written_keys
        ]
        progress = Progress(len(todo))
        for (split, _), video in zip(todo, simulate_videos(config, todo), strict=True):
            writer.split(split).add(
                Sample(
                    video.key,
                    video.slots,
                    video.annotation.json(),
                    video.questions,
                    video.ground_truth,
                )
            )
            totals += video.rejected, video.collisions, video.unseen
            progress.add()
    seconds, done = time.monotonic() - began, progress.done
    rejected, collisions, unseen = (totals / max(1, done)).tolist()
    print(
        f"{config.out}: {done} videos in {seconds:.1f} s, {60 * done / seconds:.0f} videos/min;"
        f" per video {collisions:.2f} collisions, {unseen:.2f} after its end,"
        f" {rejected:.2f} rejected worlds"
    )
    return 0


def simulate_videos(config: Simulate, videos: list[tuple[str, int]]) -> Iterator[SimulatedVideo]:
    """The videos in order, made by `workers` processes that work a bounded number ahead."""
    workers = min(
        config.workers or len(os.sched_getaffinity(0)), max(1, len(videos) // VIDEOS_PER_JOB)
    )
    if workers == 1:
        for split, index in videos:
            yield make_video(config, split, index)
        return
    chunks = collections.deque(
        videos[i : i + VIDEOS_PER_JOB] for i in range(0, len(videos), VIDEOS_PER_JOB)
    )
    jobs: collections.deque[Future[list[SimulatedVideo]]] = collections.deque()
    # Forking a process that has threads (BLAS, torch) can deadlock.
    context = multiprocessing.get_context("spawn")
    with (
        one_blas_thread(),
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=start_worker, initargs=(config.plugins,)
        ) as pool,
    ):
        try:
            while chunks or jobs:
                while chunks and len(jobs) < 3 * workers:
                    jobs.append(pool.submit(make_videos, config, chunks.popleft()))
                yield from jobs.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); try fewer workers="
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Processes that start inside this context use one BLAS thread each."""
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
