"""One training step of C-JEPA, rung by rung: the published one in float32, then ours, on the same batch.

    rungs ──rungs.py──> measured in turns ──> table

Ours is in the precision that training takes on this device (`loop.precision=auto`). Every step is forward, loss, backward, update.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cjepa_dist.config import merge
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import PredictorConfig, TrainWorldModel
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.device import default_device, native_precision
from cjepa_dist.tasks.world_model import WorldModelTask
from tools.bench.harness import SpeedTarget, Timing, Variant, markdown_table, measure, save_json
from tools.bench.reference_world_model import ReferenceStep

PROGRESS = 0.9  # part of the run behind us: every term has its full weight
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
class BenchWorldModel:
    """Speed of one training step of the world model: the published one, and ours."""

    batch: int = option(256, "windows a step", unit="windows", least=2)
    hidden: int = option(2, "slots hidden in every window", unit="slots", least=0)
    rounds: int = option(5, "times that every rung is measured; medians are shown", least=1)
    warmup: int = option(2, "steps of each rung before", unit="steps", least=0)
    gemm: int = option(2048, "side of the square matrices of the GEMM peak", least=1)
    threads: int = option(0, "threads on the CPU; 0 = torch's own number", least=0)
    compile: bool = option(False, "also ours under torch.compile")
    seed: int = option(0, "seed of weights, slots, masks, dropout")
    out: str = option("", "JSON file for the same numbers")
    predictor: PredictorConfig = option(
        PredictorConfig, "the model; defaults are the released layout"
    )


def main(config: BenchWorldModel) -> None:
    """Measure all rungs and print the table."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = default_device()
    measured = measure(
        build_variants(config, device), Timing(config.rounds, config.warmup, config.gemm), device
    )
    model = config.predictor
    tokens = (model.history_frames + model.pred_frames) * model.slots
    precision = native_precision()
    what = f"World model, one training step: batch {config.batch}, {tokens} tokens, dropout {model.dropout}, ours in {precision}"
    print(markdown_table(measured, what, "windows", SPEED_TARGETS, config.rounds, device))
    save_json(measured, config, device)


def build_variants(config: BenchWorldModel, device: torch.device) -> dict[str, Variant]:
    """The rungs by name, in the table's order."""
    torch.manual_seed(config.seed)
    model = config.predictor
    shape = (config.batch, model.history_frames + model.pred_frames, model.slots, model.slot_dim)
    slots = torch.randn(shape, device=device)
    batch = {
        "slots": slots,
        "present": torch.ones(shape[:3], dtype=torch.bool, device=device),
        "sample": torch.arange(config.batch, device=device),
    }

    def published(causal: bool) -> Variant:
        return Variant(
            ReferenceStep(model, slots, masked=config.hidden, causal=causal), config.batch, "fp32"
        )

    native = native_precision()

    def ours(
        kind: str = "",
        *,
        estimator: str = "attention",
        fraction: float = 1.0,
        precision: str = native,
        code: str = "eager",
    ) -> Variant:
        weight = {"weight": 0.1 if kind else 0.0, "ramp": 0.0}
        causal = {
            "invariance": weight,
            "sufficiency": weight,
            "fraction": fraction,
            "graph": {"estimator": estimator},
        }
        step = OurStep(
            config, batch, precision, {**causal, "kind": kind or "per_sample"}, code == "compiled"
        )
        return Variant(step, config.batch, precision, step.compiled, BASE)

    rungs = {
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
        rungs["ours compiled"] = ours(code="compiled")
    return rungs


class OurStep:
    """What `training/loop.py` does in a step, one call a step."""

    def __init__(
        self,
        config: BenchWorldModel,
        batch: dict[str, Tensor],
        precision: str,
        causal: dict,
        compiled: bool,
    ) -> None:
        torch.manual_seed(config.seed)
        hidden = min(config.hidden, config.predictor.slots)
        full = merge.build(
            TrainWorldModel,
            {
                "data": "none", "run": "none", "seed": config.seed, "predictor": asdict(config.predictor), "ctt": causal,
                "mask": {"mode": "sample", "probs": [0.0] * hidden + [1.0]}, "loop": {"global_batch_size": config.batch},
            },
        )  # fmt: skip
        device = batch["slots"].device
        self.task = WorldModelTask(full).to(device)
        self.forward = torch.compile(self.task) if compiled else self.task
        self.optimizers = build_optimizers(self.task, full.optimizer)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.batch, self.compiled, self.step = batch, compiled, 0

    def __call__(self) -> None:
        with self.autocast:
            outcome = self.forward(self.batch, self.step, PROGRESS)
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), float("inf"), foreach=True)
        for part in self.optimizers:
            part.step()
            part.zero_grad(set_to_none=True)
        self.task.update(outcome.statistics)
        self.step += 0 if self.compiled else 1  # a new number would be a new graph
