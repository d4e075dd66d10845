"""How fast rollouts without an object are computed.

    python -m tools.bench counterfactual world_model=RUN data=DIR split=val

    cjepa_dist.rollout of `few` videos and of `many`, each in a new process
        ──> difference of their times: start and loading cancel out

Variants alternate in each round; medians are shown. `data` must have questions in the split. The
model should be trained, since the cost depends on how many slots diverge.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import write_json
from tools.bench.child_process import run_module

VARIANTS = {
    "future only": ("mode=future",),
    "counterfactual, paired": ("mode=counterfactual",),
    "counterfactual, paired, 2 processes": ("mode=counterfactual", "workers=2"),
    "free": ("mode=free",),
    "counterfactual, attention rollout": ("mode=counterfactual", "divergence=attention_rollout"),
    "counterfactual, interventional": ("mode=counterfactual", "divergence=interventional"),
}


@dataclass
class BenchCounterfactual:
    """Videos a second with their rollouts without an object, by how divergence is decided."""

    world_model: str = option(MISSING, "run directory of a trained world model", path=True)
    data: str = option(MISSING, "folder of slot shards with questions", path=True)
    split: str = option("val", "split to roll out")
    few: int = option(16, "videos of the shorter run", unit="videos", least=1)
    many: int = option(64, "videos of the longer run", unit="videos", least=2)
    rounds: int = option(3, "rounds; medians are shown", least=1)
    variants: list[str] = option(list(VARIANTS), "rows: " + "; ".join(VARIANTS))
    out: str = option("", "file for the numbers as JSON; empty = none", path=True)


def main(config: BenchCounterfactual) -> None:
    """Measure, print. Raises UserError for unknown variants or too few videos."""
    if unknown := [name for name in config.variants if name not in VARIANTS]:
        raise UserError(f"variants: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    available = Manifest.load(config.data).count(config.split)
    if not config.few < config.many <= available:
        raise UserError(
            f"few={config.few}, many={config.many}: must be few < many <= {available}, "
            f"the videos of split {config.split!r}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in config.variants}
    for _ in range(config.rounds):
        for name in config.variants:
            short, long = (
                time_rollout(config, VARIANTS[name], videos) for videos in (config.few, config.many)
            )
            seconds[name].append((long - short) / (config.many - config.few))
    print(
        f"{len(os.sched_getaffinity(0))} cores, {config.few} and {config.many} videos, "
        f"median of {config.rounds} rounds\n"
    )
    print("| rollout | videos/s | ms a video | by round |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        rounds = ", ".join(f"{1000 * value:.0f}" for value in values)
        print(f"| {name} | {1 / median:.1f} | {1000 * median:.0f} | {rounds} |")
    if config.out:
        content = {"few": config.few, "many": config.many, "seconds": seconds}
        write_json(Path(config.out), content)


def time_rollout(config: BenchCounterfactual, variant: tuple[str, ...], videos: int) -> float:
    """Seconds of a rollout in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_module(
            "cjepa_dist.rollout",
            f"world_model={config.world_model}",
            f"data={config.data}",
            f"out={folder}/out",
            f"splits=[{config.split}]",
            f"videos={videos}",
            *variant,
        )
        return time.perf_counter() - began
