"""How fast slots are imported, compared with plainly copying the same bytes.

    a pickle of random slots ──┬── data_prep.import_pickle in this process ──> MB/s of the pickle
                               └── plain copy: read 4 MiB, xxh3, write; fsync ──> MB/s

Both run `rounds` times alternately, and the best of each counts. The pickle is in the page cache
for both.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from data_prep.import_pickle import ImportPickle, main
from tools.bench.random_data import FRAMES, SLOT_DIM, SLOTS


def write_pickle(path: Path, videos: int, split: str = "train") -> None:
    """A pickle {split: {"0_pixels.mp4": (128, 7, 128) float32}}.

    Written video by video, so it may be larger than memory.
    """
    shape = (FRAMES, SLOTS, SLOT_DIM)
    slots = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def value(content: object) -> bytes:
        # Without the protocol and the end: a part of a pickle program.
        return pickle.dumps(content, protocol=3)[2:-1]

    with open(path, "wb") as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT + value(split) + pickle.EMPTY_DICT)
        for scene in range(videos):
            slots[0, 0, 0] = scene / 1000
            file.write(value(f"{scene}_pixels.mp4") + value(slots) + pickle.SETITEM)
        file.write(pickle.SETITEM + pickle.STOP)


def plain_copy(source: Path, target: Path) -> str:
    """Read, hash, write and fsync a file; its xxh3."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(1 << 22))
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        while count := read.readinto(buffer):
            digest.update(buffer[:count])
            write.write(buffer[:count])
        os.fsync(write.fileno())
    return digest.hexdigest()


def import_rate(
    folder: Path, *, videos: int = 2000, dtype: str = "float16", rounds: int = 3
) -> tuple[float, float]:
    """(import, plain copy) in MB/s of a pickle of `videos` videos; `folder` is left as it was."""
    source, out, copied = folder / "slots.pkl", folder / "imported", folder / "copied"
    write_pickle(source, videos)
    size = source.stat().st_size

    def import_slots() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            main(ImportPickle(source=str(source), out=str(out), dtype=dtype))

    best = [0.0, 0.0]
    try:
        for _ in range(rounds):
            for index, work in enumerate((import_slots, lambda: plain_copy(source, copied))):
                best[index] = max(best[index], 1e-6 * size / time_call(work))
                shutil.rmtree(out, ignore_errors=True)
                copied.unlink(missing_ok=True)
    finally:
        source.unlink()
    return best[0], best[1]


def time_call(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def markdown_rows(folder: Path, videos: int = 2000) -> list[str]:
    """A table: import into each type beside the plain copy.

    `folder` needs space for twice the pickle (0.46 MB a video).
    """
    rows = ["| import of a pickle | MB/s | plain copy, MB/s | ratio |", "|---|---|---|---|"]
    for dtype in ("float16", "bfloat16", "float32"):
        ours, plain = import_rate(folder, videos=videos, dtype=dtype)
        rows.append(f"| to {dtype} | {ours:.0f} | {plain:.0f} | {ours / plain:.2f} |")
    return rows
