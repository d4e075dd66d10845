"""Chooses the engine that the launcher or the config asks for, and checks that it fits."""

from __future__ import annotations

import os
from pathlib import Path

from cjepa_dist.checkpoint.run import read_config
from cjepa_dist.config.parallel import check_engine
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.engines.base import LAUNCH_HINT, Engine
from cjepa_dist.engines.fsdp import FsdpEngine
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.device import native_precision
from cjepa_dist.runtime.environment import check_launch, meeting, read_int


def build_engine(config: TrainConfig) -> Engine:
    """The engine that the launcher or loop.engine asks for.

    Raises UserError where they disagree, a launcher is missing, another number of processes runs,
    or the optimizer does not fit.
    """
    check_launch()
    loop, launched = config.loop, engine_from_launcher()
    if launched and loop.engine not in ("auto", launched):
        raise UserError(
            f"the launcher asks for engine {launched}, loop.engine for {loop.engine}: "
            "leave one of them out"
        )
    name = launched or (loop.engine if loop.engine != "auto" else "ddp")
    if (loop.engine != "auto" or launched) and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"engine {name} was asked for, but this is one process on its own: "
            f"start with {LAUNCH_HINT.format(name)}"
        )
    if (launched_precision := precision_from_launcher()) not in ("", loop.precision):
        raise UserError(
            f"the launcher asks for mixed_precision {launched_precision}, "
            f"loop.precision for {loop.precision}: change one of them"
        )
    if config.optimizer.ema_decay >= 1:
        raise UserError(f"optimizer.ema_decay={config.optimizer.ema_decay}: must be below 1")
    check_engine(name, config)
    with meeting():
        engine = engine_class(name)(name, config)
    running = engine.accelerator.num_processes
    for source, asked in (
        ("loop.num_processes", loop.num_processes),
        ("WORLD_SIZE", read_int("WORLD_SIZE", 0)),
    ):
        if asked and running != asked:
            raise UserError(
                f"{source}={asked}, but {running} run: start with torchrun "
                f"--nproc_per_node {asked}; accelerate launch --cpu starts one process whatever "
                "its --num_processes"
            )
    return engine


def engine_class(name: str) -> type[Engine]:
    """The class behind a name of `loop.engine`. DeepSpeed is imported only where it is used."""
    if name.startswith("zero"):
        from cjepa_dist.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine
    return FsdpEngine if name == "fsdp2" else Engine


def engine_from_launcher() -> str:
    """The engine in the environment that `accelerate launch` made; "" where it names none."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "the launcher asks for FSDP 1: set fsdp_version: 2 in its fsdp_config, "
                "as configs/accelerate does"
            )
        return "fsdp2"
    return ""


def resolve_precision(run: Path, config: TrainConfig) -> None:
    """Replace loop.precision=auto: by the run's own, the launcher's or the device's."""
    if config.loop.precision == "auto":
        launched = precision_from_launcher()
        begun = read_config(run).loop.precision if (run / "config.yaml").exists() else ""
        config.loop.precision = begun or launched or native_precision()


def precision_from_launcher() -> str:
    """The precision that `accelerate launch` asks for; "" where it leaves it to us.

    Raises UserError for one that no model here is trained in: it would be recorded and ignored.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "").strip().lower()
    if asked not in ("", "no", "bf16"):
        raise UserError(
            f"the launcher asks for mixed_precision {asked} (ACCELERATE_MIXED_PRECISION); only bf16"
            " and no are trained in: start with accelerate launch --mixed_precision bf16 (or no)"
        )
    return "" if asked == "no" else asked
