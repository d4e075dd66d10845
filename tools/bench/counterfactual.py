"""How fast worlds without an object are made: `python -m tools.bench counterfactual world_model=RUN data=DIR split=val`.

    cjepa_dist.rollout of `few` videos and of `many`, each in a new process ──> difference of their times: start and loading cancel out

Rounds in turn, medians. `data` must have questions in the split; a trained model, since how much diverges is what it costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError

VARIANTS = {
    "future alone": ("mode=future",),
    "counterfactual, paired": ("mode=counterfactual",),
    "counterfactual, paired, 2 processes": ("mode=counterfactual", "workers=2"),
    "free": ("mode=free",),
    "counterfactual, attention rollout": ("mode=counterfactual", "divergence=attention_rollout"),
    "counterfactual, interventional": ("mode=counterfactual", "divergence=interventional"),
}


@dataclass
class BenchCounterfactual:
    """Videos a second, worlds without an object included, by what says that a slot has diverged."""

    world_model: str = option(MISSING, "run folder of a trained world model")
    data: str = option(MISSING, "folder of slot shards with questions")
    split: str = option("val", "split to roll out")
    few: int = option(16, "videos of the shorter run", unit="videos", least=1)
    many: int = option(64, "videos of the longer run", unit="videos", least=2)
    rounds: int = option(3, "rounds; medians are shown", least=1)
    ways: list[str] = option(list(VARIANTS), "rows: " + "; ".join(VARIANTS))
    out: str = option("", "file for the numbers as JSON; empty = none")


def main(config: BenchCounterfactual) -> None:
    if unknown := [way for way in config.ways if way not in VARIANTS]:
        raise UserError(f"ways: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    if not config.few < config.many <= (there := Manifest.load(config.data).count(config.split)):
        raise UserError(
            f"few={config.few}, many={config.many}: must be few < many <= {there}, the videos of split {config.split!r}"
        )
    seconds: dict[str, list[float]] = {way: [] for way in config.ways}
    for _ in range(config.rounds):
        for way in config.ways:
            short, long = (
                time_rollout(config, VARIANTS[way], videos) for videos in (config.few, config.many)
            )
            seconds[way].append((long - short) / (config.many - config.few))
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    print(
        f"{len(os.sched_getaffinity(0))} cores, {config.few} and {config.many} videos, median of {config.rounds} rounds\n"
    )
    print("| rollout | videos/s | ms a video | by round |\n|---|---|---|---|")
    for way, value in middle.items():
        print(
            f"| {way} | {1 / value:.1f} | {1000 * value:.0f} | {', '.join(f'{1000 * s:.0f}' for s in seconds[way])} |"
        )
    if config.out:
        Path(config.out).write_text(
            json.dumps({"few": config.few, "many": config.many, "seconds": seconds}, indent=1)
        )


def time_rollout(config: BenchCounterfactual, way: tuple[str, ...], videos: int) -> float:
    """Seconds of a rollout in a process of its own. Raises UserError with the last line of one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            f"world_model={config.world_model}",
            f"data={config.data}",
            f"out={folder}/out",
            f"splits=[{config.split}]",
        ]
        command = [sys.executable, "-m", "cjepa_dist.rollout", *arguments, f"videos={videos}", *way]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"{' '.join(way)}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
        return time.perf_counter() - began
