"""What reading costs: `python -m tools.bench data key=value ...`.

    slots on disk ──┬── in memory, streaming: sampling, gathering, as stored, as training reads it;
                    │   then float32, as a step gets it
                    ├── per window: a Python dataset in a DataLoader, as the published code reads
                    └── memcpy of a batch's bytes, from an array too large for the caches
    rounds, alternately; processor time of all threads ──> ratios of each round ──> median

    new processes: seconds from opening a split to its first batch, memory
    training, both ways: how long a step waits for data
    data_import.py: import beside a plain copy

Files are in the page cache for all of them. Processor time is used because other work on the
machine affects it less, and each way but streaming is one thread's work. The DataLoader has no
workers: their messages would only add to its cost.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
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
from cjepa_dist.data.dataset import Batch
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.streaming.windows import StreamingWindows
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.runtime.files import write_json
from cjepa_dist.training.data_loader import PrefetchingLoader
from tools.bench import data_import
from tools.bench.child_process import run_module
from tools.bench.random_data import FRAMES, SLOT_DIM, SLOTS, write_random_slots

WINDOW = WindowSpec(history_frames=3, pred_frames=1, frameskip=5)
PER_WINDOW = "per window"
MEMCPY, MEMCPY_FLOAT32 = "memcpy, as stored", "memcpy, float32"
AS_FLOAT32 = ", then float32"  # behind the name of a source
WINDOW_SOURCES: dict[str, Callable[..., Any]] = {
    "in_memory": InMemoryWindows,
    "streaming": StreamingWindows,
}
CPU = torch.device("cpu")


@dataclass
class BenchData:
    """Cost of reading, beside its upper bound and what it replaces."""

    data: str = option(
        "", "folder of slot shards (train and val); empty = noise, made for this", path=True
    )
    megabytes: int = option(1024, "noise to make", unit="MB of slots", least=16)
    shard_mb: int = option(
        16,
        "its shards: small ones, so that blocks change while we measure",
        unit="MiB",
        least=1,
        most=1 << 20,
    )
    batch: int = option(256, "windows a batch", least=1)
    batches: int = option(64, "batches of a round", least=1)
    rounds: int = option(7, "rounds; medians are shown", least=1)
    steps: int = option(
        300,
        "steps of training whose waiting for data is measured; 0 = none",
        unit="steps",
        least=0,
    )
    imports: int = option(2000, "videos whose import is measured; 0 = none", unit="videos", least=0)
    out: str = option("", "JSON file for the same numbers", path=True)


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
            videos = config.megabytes * 1_000_000 // (FRAMES * SLOTS * SLOT_DIM * 2)
            write_random_slots(Path(data), videos, shard_mb=config.shard_mb)
        found: dict[str, Any] = {"rates": measure_rates(config, data), "waits": {}, "import": []}
        found["opened"] = {
            kind: in_new_process(kind, data, config.batch) for kind in WINDOW_SOURCES
        }
        if config.steps:
            found["waits"] = {
                kind: measure_waiting(config, data, Path(folder) / kind, kind)
                for kind in WINDOW_SOURCES
            }
        if config.imports:
            found["import"] = data_import.markdown_rows(Path(folder), config.imports)
    print(markdown_table(config, found))
    if config.out:
        write_json(Path(config.out), {"config": asdict(config), **found})


def measure_rates(config: BenchData, data: str) -> dict[str, list[float]]:
    """{way of reading: windows a processor second, a number a round}; the ways alternate."""
    slots = load_slots(data, "train")
    ways: dict[str, Iterator[Any]] = {
        MEMCPY: memcpy_batches(config, slots, slots.itemsize),
        MEMCPY_FLOAT32: memcpy_batches(config, slots, 4),
    }
    for kind in WINDOW_SOURCES:
        ways[kind] = loader_batches(config, kind, data)
        ways[kind + AS_FLOAT32] = map(to_float32, loader_batches(config, kind, data))
    ways[PER_WINDOW] = per_window_batches(config, slots[:1000])  # it holds a float32 copy
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
    """Copies of as many bytes as a batch has with `width` bytes a number, from ever new places."""
    source = slots.reshape(-1).view(np.uint8)
    size, begin = config.batch * 4 * slots.shape[2] * slots.shape[3] * width, 0
    while True:
        yield source[begin : begin + size].copy()
        begin = begin + size if begin + 2 * size <= len(source) else 0


def loader_batches(config: BenchData, kind: str, data: str) -> Iterator[Any]:
    """The batches that a training step gets, without end."""
    loader = PrefetchingLoader(
        WINDOW_SOURCES[kind](data, "train", WINDOW),
        seed=0,
        start=0,
        stop=0,
        global_batch_size=config.batch,
        gradient_accumulation=1,
        rank=0,
        world_size=1,
        device=CPU,
    )
    return map(loader.read, itertools.count())


def to_float32(batches: list[Batch]) -> list[Batch]:
    """As a step on this device does it."""
    return [to_device(batch, CPU) for batch in batches]


def per_window_batches(config: BenchData, slots: np.ndarray) -> Iterator[Any]:
    """Batches of PyTorch's DataLoader, without end."""
    dataset = PerWindowDataset(slots)
    while True:
        yield from DataLoader(dataset, config.batch, shuffle=True, drop_last=True)


def in_new_process(kind: str, data: str, batch: int) -> dict[str, float]:
    """`measure_opening` in a process of its own, so that memory starts small."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_opening, (kind, data, batch))


def measure_opening(kind: str, data: str, batch: int) -> dict[str, float]:
    """Seconds from opening a split to its first batch, and MB of memory over 400 batches.

    Streaming uses blocks of 512 MiB, the default with default shards.
    """
    process, most, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch_memory() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, process.memory_info().rss)

    threading.Thread(target=watch_memory, daemon=True).start()
    began = time.perf_counter()
    source = WINDOW_SOURCES[kind](
        data, "train", WINDOW, **block_settings(data) if kind == "streaming" else {}
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
    return {"shuffle_shards": -(-(512 << 20) // Manifest.load(data).shards("train")[0].bytes)}


def measure_waiting(config: BenchData, data: str, run: Path, kind: str) -> dict[str, float]:
    """Share of a training's time that steps wait for data, and seconds a step.

    The first line of metrics is left out.
    """
    run_module(
        "cjepa_dist.train_world_model",
        "configs/world_model/quickstart.yaml",
        f"data={data}",
        f"run={run}",
        "contact_share=0",
        f"loop.steps={config.steps}",
        f"loop.log_every={max(1, config.steps // 12)}",
        "loop.eval_every=0",
        "loop.checkpoint_every=1000000",
        "val_windows=64",
        f"reading.kind={kind}",
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"][1:]
    seconds = statistics.mean(line["data_seconds"] + line["step_seconds"] for line in lines)
    waited = statistics.mean(line["data_seconds"] for line in lines)
    return {"share": waited / seconds, "seconds": seconds}


def markdown_table(config: BenchData, found: dict[str, Any]) -> str:
    """The rates, the new processes, the speed targets, the import."""
    rates, waits = found["rates"], found["waits"]

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other]))

    lines = [
        f"Windows of 4 frames, batches of {config.batch}; {config.rounds} rounds, alternately; "
        "medians of rates and of each round's ratios.",
        "",
        f"| what | windows a processor second | of {MEMCPY} | of {MEMCPY_FLOAT32} "
        "| times per window |",
        "|---|---|---|---|---|",
    ]
    for name, values in rates.items():
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} | {ratio(name, MEMCPY):.2f} "
            f"| {ratio(name, MEMCPY_FLOAT32):.2f} | {ratio(name, PER_WINDOW):.1f} |"
        )
    lines += [
        "",
        "| new process | first batch | memory |" + (" a step waits | of |" if waits else ""),
        "|---|---|---|" + ("---|---|" if waits else ""),
    ]
    for kind, opened in found["opened"].items():
        line = f"| {kind} | {opened['seconds']:.2f} s | {opened['megabytes']:,.0f} MB |"
        if kind in waits:
            line += f" {waits[kind]['share']:.2%} | {1e3 * waits[kind]['seconds']:.1f} ms |"
        lines.append(line)
    copied, faster = ratio("in_memory", MEMCPY), ratio("in_memory", PER_WINDOW)
    first = found["opened"]["streaming"]["seconds"]
    targets = {
        f"in_memory at least half of {MEMCPY}: {copied:.2f}": copied >= 0.5,
        f"in_memory at least 20 times {PER_WINDOW}: {faster:.1f}": faster >= 20,
        f"first batch within 2 s: {first:.2f} s": first <= 2,
    }
    if waits:
        share = waits["streaming"]["share"]
        targets[f"a streaming step waits at most 2 %: {share:.2%}"] = share <= 0.02
    met = [f"- {text}: {'met' if good else 'NOT met'}" for text, good in targets.items()]
    return "\n".join([*lines, "", *met, "", *found["import"]])
