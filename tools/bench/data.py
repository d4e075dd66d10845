"""What reading costs: `python -m tools.bench data key=value ...`.

    slots on disk ──┬── resident, streaming: order, gather, as stored, through training/data_loader.py; then float32, as a step gets them
                    ├── per window: a Python dataset in a DataLoader, as the published code reads, in float32
                    └── memcpy of a batch's bytes, as stored and as float32, out of an array too large for the caches
    rounds in turn, processor time of all threads ──> ratios of each round ──> median

    new processes: seconds from opening a split to its first batch, most memory      training, both ways: what a step waits for data
    tools/bench/data_import.py: import beside a plain copy

Files are in the page cache, for all alike. Processor time, since each way but the streaming one is one thread's work, and other work on the
machine harms it less; the DataLoader has no workers, whose messages would only add to it.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from cjepa_dist.config.fields import option
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.streaming.windows import StreamingWindows
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.training.data_loader import PrefetchingLoader
from tools.bench import data_import
from tools.bench.random_data import write_random_slots
from tools.bench.training import PROJECT

WINDOW = {"history_frames": 3, "pred_frames": 1, "frameskip": 5}
PER_WINDOW = "per window"
MEMCPY, MEMCPY_FLOAT32 = "memcpy, as stored", "memcpy, float32"
AS_FLOAT32 = ", then float32"  # behind the name of a kind
WINDOW_SOURCES: dict[str, Callable[..., Any]] = {
    "in_memory": InMemoryWindows,
    "streaming": StreamingWindows,
}


@dataclass
class BenchData:
    """Reading, beside what bounds it and what it replaces."""

    data: str = option("", "folder of slot shards (train and val); empty = noise, made for this")
    megabytes: int = option(1024, "noise to make", unit="MB of slots", least=16)
    shard_mb: int = option(
        16, "its shards: small ones, so that blocks change while we look", unit="MiB", least=1
    )
    batch: int = option(256, "windows a batch", least=1)
    loader_batches: int = option(64, "batches of a round", least=1)
    rounds: int = option(7, "rounds; medians are shown", least=1)
    steps: int = option(
        300,
        "steps of configs/world_model/quickstart.yaml whose waiting is measured; 0 = none",
        unit="steps",
        least=0,
    )
    imports: int = option(2000, "videos whose import is measured; 0 = none", unit="videos", least=0)
    out: str = option("", "JSON file for the same numbers")


class PerWindowDataset(Dataset):
    """A window at a time, in Python, from float32 arrays by video name."""

    def __init__(self, slots: np.ndarray, length: int = 4, skip: int = 5) -> None:
        self.videos = {
            f"{video}_pixels.mp4": array.astype(np.float32) for video, array in enumerate(slots)
        }
        self.names, self.length, self.skip = list(self.videos), length, skip
        self.starts = slots.shape[1] - length * skip + 1

    def __len__(self) -> int:
        return len(self.names) * self.starts

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, start = divmod(index, self.starts)
        slots = self.videos[self.names[video]]
        frames = [slots[start + step * self.skip] for step in range(self.length)]
        return {"slots": np.stack(frames).astype(np.float32), "index": index}


def main(config: BenchData) -> None:
    """Measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        data = config.data or str(Path(folder) / "data")
        if not config.data:
            write_random_slots(
                Path(data),
                config.megabytes * 1_000_000 // (128 * 7 * 128 * 2),
                7,
                128,
                config.shard_mb,
            )
        found: dict[str, Any] = {"rates": measure_rates(config, data)}
        found["opened"] = {
            kind: in_new_process(kind, data, config.batch) for kind in WINDOW_SOURCES
        }
        found["waits"] = (
            {
                kind: measure_waiting(config, data, Path(folder) / kind, kind)
                for kind in WINDOW_SOURCES
            }
            if config.steps
            else {}
        )
        found["import"] = imported(Path(folder), config.imports)
    print(markdown_table(config, found))
    if config.out:
        Path(config.out).write_text(json.dumps({"config": asdict(config), **found}, indent=1))


def measure_rates(config: BenchData, data: str) -> dict[str, list[float]]:
    """Windows a processor second of each way, a number a round; the rounds take turns."""
    slots = load_slots(data, "train")
    ways: dict[str, Iterator[Any]] = {
        MEMCPY: memcpy_batches(config, slots, slots.itemsize),
        MEMCPY_FLOAT32: memcpy_batches(config, slots, 4),
    }
    for kind in WINDOW_SOURCES:
        ways |= {
            kind: loader_batches(config, kind, data),
            kind + AS_FLOAT32: map(to_float32, loader_batches(config, kind, data)),
        }
    ways[PER_WINDOW] = per_window_batches(
        config, slots[:1000]
    )  # its arrays are float32, and copied
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        next(way)
    for _ in range(config.rounds):
        for name, way in ways.items():
            count = max(4, config.batches // 8) if name == PER_WINDOW else config.batches
            began = time.process_time()
            for _ in range(count):
                next(way)
            found[name].append(count * config.batch / (time.process_time() - began))
    return found


def memcpy_batches(config: BenchData, slots: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """As many bytes as a batch has with `width` a number, from one place after the other to a new array."""
    source = slots.reshape(-1).view(np.uint8)
    size, begin = config.batch * 4 * slots.shape[2] * slots.shape[3] * width, 0
    while True:
        yield source[begin : begin + size].copy()
        begin = begin + size if begin + 2 * size <= len(source) else 0


def loader_batches(config: BenchData, kind: str, data: str) -> Iterator[Any]:
    """What a training step would be handed, without end."""
    feed = PrefetchingLoader(
        WINDOW_SOURCES[kind](data, "train", **WINDOW), seed=0, start=0, stop=0, global_batch_size=config.batch, accumulation=1, rank=0, world=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    return map(feed.read, itertools.count())


def to_float32(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [to_device(batch, torch.device("cpu")) for batch in batches]


def per_window_batches(config: BenchData, slots: np.ndarray) -> Iterator[Any]:
    dataset = PerWindowDataset(slots)
    while True:
        yield from DataLoader(dataset, config.batch, shuffle=True, drop_last=True)


def in_new_process(kind: str, data: str, batch: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_opening, (kind, data, batch))


def measure_opening(kind: str, data: str, batch: int) -> dict[str, float]:
    """Seconds from opening a split to its first batch; MB by which memory grew at most, until then and over 400 batches.

    Streaming in blocks of 512 MiB, as the default has them with default shards.
    """
    process, most, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, process.memory_info().rss)

    threading.Thread(target=look, daemon=True).start()
    began = time.perf_counter()
    source = WINDOW_SOURCES[kind](
        data, "train", **WINDOW, **block_settings(data) if kind == "streaming" else {}
    )
    seconds = 0.0
    for step in range(400):
        position = step * batch
        ids = source.prepare(0, position, source.sample_ids(0, position, batch), slice(0, batch))
        source.get_batch(ids, ids)
        seconds = seconds or time.perf_counter() - began
    done.set()
    return {"seconds": seconds, "megabytes": 1e-6 * (most - before)}


def block_settings(data: str) -> dict[str, int]:
    """A block of as many bytes as the default has with shards of 256 MiB."""
    return {"shards": -(-(512 << 20) // Manifest.load(data).shards("train")[0].bytes)}


def measure_waiting(config: BenchData, data: str, run: Path, kind: str) -> dict[str, float]:
    """Share of a training's time that steps wait for data, and seconds a step, after the first line of metrics."""
    arguments = [
        "configs/world_model/quickstart.yaml", f"data={data}", f"run={run}", "contact_share=0", f"loop.steps={config.steps}",
        f"loop.log_every={max(1, config.steps // 12)}", "loop.eval_every=0", "loop.checkpoint_every=1000000", "val_windows=64",
        f"reading.kind={kind}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "cjepa_dist.train_world_model", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"exit code {done.returncode}: {' '.join(command[1:])}: {done.stderr[-500:]}"
        )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"][1:]
    seconds = statistics.mean(line["data_seconds"] + line["step_seconds"] for line in lines)
    return {
        "share": statistics.mean(line["data_seconds"] for line in lines) / seconds,
        "seconds": seconds,
    }


def imported(folder: Path, videos: int) -> list[str]:
    return data_import.markdown_rows(folder, videos) if videos else []


def markdown_table(config: BenchData, found: dict[str, Any]) -> str:
    """Markdown."""
    rates = found["rates"]
    middle = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other]))

    lines = [
        f"Windows of 4 frames, batches of {config.batch}; {config.rounds} rounds in turn, medians of rates and of each round's ratios.",
        "",
        f"| what | windows a processor second | of {MEMCPY} | of {MEMCPY_FLOAT32} | times per window |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {middle[name]:,.0f} | {ratio(name, MEMCPY):.2f} | {ratio(name, MEMCPY_FLOAT32):.2f} | {ratio(name, PER_WINDOW):.1f} |"
            for name in rates
        ),
        "",
        "| new process | first batch | memory grew by |"
        + (" a step waits | of |" if found["waits"] else ""),
        "|---|---|---|" + ("---|---|" if found["waits"] else ""),
    ]
    for kind, values in found["opened"].items():
        line = f"| {kind} | {values['seconds']:.2f} s | {values['megabytes']:,.0f} MB |"
        if waits := found["waits"].get(kind):
            line += f" {waits['share']:.2%} | {1e3 * waits['seconds']:.1f} ms |"
        lines.append(line)
    met = {
        f"resident at least half of {MEMCPY}: {ratio('resident', MEMCPY):.2f}": ratio(
            "in_memory", MEMCPY
        )
        >= 0.5,
        f"resident at least 20 times per window: {ratio('resident', PER_WINDOW):.1f}": ratio(
            "in_memory", PER_WINDOW
        )
        >= 20,
        f"first batch within 2 s: {found['opened']['streaming']['seconds']:.2f} s": found["opened"][
            "streaming"
        ]["seconds"]
        <= 2,
    }
    if found["waits"]:
        met[f"a streaming step waits at most 2 %: {found['waits']['streaming']['share']:.2%}"] = (
            found["waits"]["streaming"]["share"] <= 0.02
        )
    lines += [
        "",
        *(f"- {text}: {'met' if good else 'NOT met'}" for text, good in met.items()),
        "",
        *found["import"],
    ]
    return "\n".join(lines)
