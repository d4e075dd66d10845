"""One training step of C-JEPA: the published one in float32, then ours, on the same batch.

    variants ──harness.py──> measured alternately ──> table

Ours is in the precision that training uses on this device (`loop.precision=auto`). Every step is
forward, loss, backward, update.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch

from cjepa_dist.config import merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import PredictorConfig, TrainWorldModel
from cjepa_dist.runtime.device import native_precision
from tools.bench.bare_step import BareStep
from tools.bench.harness import SpeedTarget, StepBenchmark, Variant, run_benchmark
from tools.bench.reference.world_model import ReferenceStep

PROGRESS = 0.9  # part of the run behind us: every loss term has its full weight
REFERENCE, REFERENCE_CTT = "published, fp32", "published + CTT, fp32"
BASE, OURS_CTT = "ours", "ours + published CTT"
ATTENTION, QUARTER = "ours + CTT `attention`", "ours + CTT `attention` on 1/4"
SPEED_TARGETS = (
    SpeedTarget(BASE, REFERENCE, 3.0),
    SpeedTarget(OURS_CTT, REFERENCE_CTT, 3.0),
    SpeedTarget(ATTENTION, BASE, 3.2, "at most"),
    SpeedTarget(QUARTER, BASE, 1.6, "at most"),
)


@dataclass
class BenchWorldModel(StepBenchmark):
    """Speed of one training step of the world model: the published one, and ours."""

    batch: int = option(256, "windows a step", unit="windows", least=2)
    hidden: int = option(2, "slots hidden in every window", unit="slots", least=0)
    compile: bool = option(False, "also ours under torch.compile")
    predictor: PredictorConfig = option(
        PredictorConfig, "the model; defaults are the released layout"
    )


def main(config: BenchWorldModel) -> None:
    """Measure all variants and print the table."""
    model = config.predictor
    tokens = (model.history_frames + model.pred_frames) * model.slots
    title = (
        f"World model, one training step: batch {config.batch}, {tokens} tokens, "
        f"dropout {model.dropout}, ours in {native_precision()}"
    )
    run_benchmark(config, partial(build_variants, config), title, "windows", SPEED_TARGETS)


def build_variants(config: BenchWorldModel, device: torch.device) -> dict[str, Variant]:
    """The variants by name, in the table's order."""
    torch.manual_seed(config.seed)
    model = config.predictor
    shape = (config.batch, model.history_frames + model.pred_frames, model.slots, model.slot_dim)
    slots = torch.randn(shape, device=device)
    batch = {
        "slots": slots,
        "present": torch.ones(shape[:3], dtype=torch.bool, device=device),
        "sample": torch.arange(config.batch, device=device),
    }
    native = native_precision()

    def published(causal: bool) -> Variant:
        step = ReferenceStep(model, slots, masked=config.hidden, causal=causal)
        return Variant(step, config.batch, "fp32")

    def ours(
        kind: str = "",
        *,
        estimator: str = "attention",
        fraction: float = 1.0,
        precision: str = native,
        compiled: bool = False,
    ) -> Variant:
        step = BareStep(
            train_config(config, kind, estimator, fraction),
            [batch],
            precision=precision,
            progress=PROGRESS,
            compiled=compiled,
        )
        return Variant(step, config.batch, precision, BASE if compiled else "")

    variants = {
        REFERENCE: published(causal=False),
        **({"ours, fp32": ours(precision="fp32")} if native != "fp32" else {}),
        BASE: ours(),
        REFERENCE_CTT: published(causal=True),
        OURS_CTT: ours("published"),
        ATTENTION: ours("per_sample"),
        QUARTER: ours("per_sample", fraction=0.25),
        "ours + CTT `interventional` on 1/4": ours(
            "per_sample", estimator="interventional", fraction=0.25
        ),
    }
    if config.compile:
        variants["ours compiled"] = ours(compiled=True)
    return variants


def train_config(
    config: BenchWorldModel, kind: str, estimator: str, fraction: float
) -> TrainWorldModel:
    """The training config of one variant; `kind` of the CTT losses, "" for none."""
    hidden = min(config.hidden, config.predictor.slots)
    term = {"weight": 0.1 if kind else 0.0, "ramp": 0.0}
    content = {
        "data": "none",
        "run": "none",
        "seed": config.seed,
        "predictor": asdict(config.predictor),
        "ctt": {
            "kind": kind or "per_sample",
            "invariance": term,
            "sufficiency": term,
            "fraction": fraction,
            "graph": {"estimator": estimator},
        },
        "mask": {"mode": "sample", "probs": [0.0] * hidden + [1.0]},
        "loop": {"global_batch_size": config.batch},
    }
    return merge.build(TrainWorldModel, content)
