"""One training step of ALOE, rung by rung: a plain one in float32, then ours, on the same questions of simulated videos.

    simulate ─> QuestionSource ─gather─> batch ─┬─> reference_aloe.py ┐
                                                └─> our task          ┴─rungs.py──> measured in turns ──> table

Ours is in the precision that training takes on this device (`loop.precision=auto`). Every step is forward, loss, backward, update;
`gather` is what the feed does beside the step before. A batch by video has about as many questions, of fewer videos.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.config import merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import AloeConfig, TrainAloe
from cjepa_dist.data.questions import InMemoryQuestions, VideoQuestions
from cjepa_dist.data.sampler import sample_ids
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.device import default_device, native_precision
from cjepa_dist.tasks.vqa import VqaTask
from data_prep.simulate.__main__ import main as simulate
from data_prep.simulate.settings import Simulate
from tools.bench.harness import SpeedTarget, Timing, Variant, markdown_table, measure, save_json
from tools.bench.reference_aloe import ReferenceAloeStep

REFERENCE, BASE = "plain, published layout, fp32", "ours, published layout"
SHARED, BY_VIDEO = "ours, shared vision", "ours, shared vision, by video"
SPEED_TARGETS = (
    SpeedTarget(BASE, REFERENCE, 3.0),
    SpeedTarget(SHARED, REFERENCE, 3.0),
    SpeedTarget(BY_VIDEO, REFERENCE, 3.0),
)


@dataclass
class BenchAloe:
    """Speed of one training step of ALOE: a plain one, and ours."""

    batch: int = option(96, "questions a step", unit="questions", least=2)
    videos: int = option(100, "videos simulated for their questions", unit="videos", least=2)
    rounds: int = option(5, "times that every rung is measured; medians are shown", least=1)
    warmup: int = option(1, "steps of each rung before", unit="steps", least=0)
    gemm: int = option(2048, "side of the square matrices of the GEMM peak", least=1)
    threads: int = option(0, "threads on the CPU; 0 = torch's own number", least=0)
    stride: int = option(5, "video frames between sampled frames", unit="frames", least=1)
    seed: int = option(0, "seed of videos, weights, order, dropout")
    out: str = option("", "JSON file for the same numbers")
    aloe: AloeConfig = option(AloeConfig, "the model; defaults are the published size")


def main(config: BenchAloe) -> None:
    """Measure all rungs and print the table."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = default_device()
    with tempfile.TemporaryDirectory() as folder:
        source = simulate_questions(config, Path(folder) / "data")
    measured = measure(
        build_variants(config, source, device),
        Timing(config.rounds, config.warmup, config.gemm),
        device,
    )
    model = config.aloe
    tokens = 1 + model.frames * model.slots + 32
    what = f"ALOE, one training step: batch {config.batch}, {tokens} tokens, dropout {model.dropout}, ours in {native_precision()}"
    print(markdown_table(measured, what, "questions", SPEED_TARGETS, config.rounds, device))
    save_json(measured, config, device)


def simulate_questions(config: BenchAloe, folder: Path) -> InMemoryQuestions:
    """The questions of simulated videos, in memory."""
    model, videos = config.aloe, config.videos
    simulate(
        Simulate(
            out=str(folder),
            train=videos,
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
    """The rungs by name, in the table's order."""
    torch.manual_seed(config.seed)
    videos = VideoQuestions(source)
    sample = np.arange(config.batch, dtype=np.int64)
    some = sample_ids(config.seed, 0, config.batch, len(source))
    of_each = np.cumsum(np.diff(videos.first)[sample_ids(config.seed, 0, len(videos), len(videos))])
    few = (
        int(np.searchsorted(of_each, config.batch)) + 1
    )  # so many videos have about a batch of questions
    drawn = sample_ids(config.seed, 0, few, len(videos))
    mixed, whole = source.get_batch(some, sample), videos.get_batch(drawn, sample[:few])
    batch, by_video = (
        {name: value.to(device) for name, value in part.items()} for part in (mixed, whole)
    )

    def ours(
        precision: str = native_precision(),
        *,
        shared: bool = False,
        questions: dict[str, Tensor] = batch,
    ) -> Variant:
        step = OurStep(config, questions, precision, shared)
        return Variant(step, len(questions["question"]), precision)

    return {
        REFERENCE: Variant(ReferenceAloeStep(config.aloe, batch), config.batch, "fp32"),
        **({"ours, published layout, fp32": ours("fp32")} if native_precision() != "fp32" else {}),
        BASE: ours(),
        SHARED: ours(shared=True),
        BY_VIDEO: ours(shared=True, questions=by_video),
        "gather": Variant(partial(source.gather, some, sample), config.batch, "fp32"),
        "gather, by video": Variant(
            partial(videos.gather, drawn, sample[:few]), len(by_video["question"]), "fp32"
        ),
    }


class OurStep:
    """What `training/loop.py` does in a step, one call a step."""

    def __init__(
        self, config: BenchAloe, batch: dict[str, Tensor], precision: str, shared: bool
    ) -> None:
        torch.manual_seed(config.seed)
        model = asdict(config.aloe) | {"shared_vision": shared}
        full = merge.build(
            TrainAloe,
            {
                "data": "none", "run": "none", "seed": config.seed, "aloe": model,
                "optimizer": {"name": "adam", "lr": 1e-3}, "loop": {"global_batch_size": config.batch},
            },
        )  # fmt: skip
        device = batch["slots"].device
        self.task = VqaTask(full).to(device)
        self.optimizers = build_optimizers(self.task, full.optimizer)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.batch, self.step = batch, 0

    def __call__(self) -> None:
        with self.autocast:
            outcome = self.task(self.batch, self.step)
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), float("inf"), foreach=True)
        for part in self.optimizers:
            part.step()
            part.zero_grad(set_to_none=True)
        self.step += 1
