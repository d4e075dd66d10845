"""One training step of ALOE: a plain one in float32, then ours, on questions of simulated videos.

    simulate ─> InMemoryQuestions ─get_batch─> batch ─┬─> reference_aloe.py ─┐
                                                      └─> our task ──────────┴─harness.py──> table

Ours is in the precision that training uses on this device (`loop.precision=auto`). Every step is
forward, loss, backward, update; `get_batch` is what the data loader does during the step before.
A batch by video has about as many questions, from fewer videos.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cjepa_dist.config import merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import AloeConfig, TrainAloe
from cjepa_dist.data.dataset import Batch
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.sampler import sample_ids
from cjepa_dist.runtime.device import native_precision
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate
from tools.bench.bare_step import BareStep
from tools.bench.harness import SpeedTarget, StepBenchmark, Variant, run_benchmark
from tools.bench.reference.aloe import ReferenceAloeStep

REFERENCE, BASE = "plain, published layout, fp32", "ours, published layout"
SHARED, BY_VIDEO = "ours, shared vision", "ours, shared vision, by video"
SPEED_TARGETS = tuple(SpeedTarget(name, REFERENCE, 3.0) for name in (BASE, SHARED, BY_VIDEO))


@dataclass
class BenchAloe(StepBenchmark):
    """Speed of one training step of ALOE: a plain one, and ours."""

    batch: int = option(96, "questions a step", unit="questions", least=2)
    videos: int = option(100, "videos simulated for their questions", unit="videos", least=2)
    stride: int = option(5, "video frames between sampled frames", unit="frames", least=1)
    aloe: AloeConfig = option(AloeConfig, "the model; defaults are the published size")


def main(config: BenchAloe) -> None:
    """Measure all variants and print the table."""
    model = config.aloe
    title = (
        f"ALOE, one training step: batch {config.batch}, {1 + model.frames * model.slots + 32} "
        f"tokens, dropout {model.dropout}, ours in {native_precision()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = simulate_questions(config, Path(folder) / "data")
    build = partial(build_variants, config, source)
    run_benchmark(config, build, title, "questions", SPEED_TARGETS)


def simulate_questions(config: BenchAloe, folder: Path) -> InMemoryQuestions:
    """The questions of simulated videos, in memory."""
    model = config.aloe
    simulate(
        Simulate(
            out=str(folder),
            train=config.videos,
            val=0,
            test=0,
            seed=config.seed,
            slots=model.slots,
            slot_dim=model.slot_dim,
            workers=1,
        )
    )
    return InMemoryQuestions(
        folder, "train", frames=model.frames, stride=config.stride, seed=config.seed
    )


def build_variants(
    config: BenchAloe, source: InMemoryQuestions, device: torch.device
) -> dict[str, Variant]:
    """The variants by name, in the table's order."""
    torch.manual_seed(config.seed)
    videos = VideoQuestions(source)
    sample = np.arange(config.batch, dtype=np.int64)
    questions = sample_ids(config.seed, 0, config.batch, len(source))
    shuffled = sample_ids(config.seed, 0, len(videos), len(videos))
    total = np.cumsum(np.diff(videos.first_asked)[shuffled])
    # The first videos of the shuffled ones that have about a batch of questions together.
    drawn = shuffled[: int(np.searchsorted(total, config.batch)) + 1]
    batch, by_video = (
        {name: value.to(device) for name, value in part.items()}
        for part in (
            source.get_batch(questions, sample),
            videos.get_batch(drawn, sample[: len(drawn)]),
        )
    )
    count = len(by_video["question"])
    native = native_precision()

    def ours(precision: str = native, *, shared: bool = False, questions: Batch = batch) -> Variant:
        step = BareStep(
            train_config(config, shared), [questions], precision=precision, progress=0.0
        )
        return Variant(step, len(questions["question"]), precision)

    get_batch = partial(source.get_batch, questions, sample)
    get_videos = partial(videos.get_batch, drawn, sample[: len(drawn)])
    return {
        REFERENCE: Variant(ReferenceAloeStep(config.aloe, batch), config.batch, "fp32"),
        **({"ours, published layout, fp32": ours("fp32")} if native != "fp32" else {}),
        BASE: ours(),
        SHARED: ours(shared=True),
        BY_VIDEO: ours(shared=True, questions=by_video),
        "get_batch": Variant(get_batch, config.batch, "fp32"),
        "get_batch, by video": Variant(get_videos, count, "fp32"),
    }


def train_config(config: BenchAloe, shared: bool) -> TrainAloe:
    """The training config of one variant; `shared`: one encoding of a video for its questions."""
    content = {
        "data": "none",
        "run": "none",
        "seed": config.seed,
        "aloe": asdict(config.aloe) | {"shared_vision": shared},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "loop": {"global_batch_size": config.batch},
    }
    return merge.build(TrainAloe, content)
