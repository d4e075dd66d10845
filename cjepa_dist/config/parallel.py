"""Whether a training config fits the processes and the engine that are to run it; without torch.

A training checks this when it starts, and an experiment before its jobs are queued.
"""

from __future__ import annotations

from cjepa_dist.config.schema import TrainAloe, TrainConfig, TrainWorldModel
from cjepa_dist.errors import UserError


def check_batch_divides(config: TrainConfig, world_size: int) -> None:
    """Raises UserError where a step cannot be split evenly over processes and passes."""
    loop = config.loop
    parts = world_size * loop.gradient_accumulation
    if loop.global_batch_size % parts:
        raise UserError(
            f"loop.global_batch_size={loop.global_batch_size} is not divisible by {world_size} "
            f"processes x loop.gradient_accumulation={loop.gradient_accumulation}"
        )
    if isinstance(config, TrainWorldModel) and (fraction := config.ctt.fraction) < 1:
        share = fraction * loop.global_batch_size / parts
        if share < 1 or abs(share - round(share)) > 1e-6:
            raise UserError(
                f"ctt.fraction={fraction} of the {loop.global_batch_size // parts} windows of a "
                f"pass is {share:g}: take a fraction that gives a whole number, so that the "
                "windows do not depend on the number of processes"
            )


def check_engine(name: str, config: TrainConfig) -> None:
    """Raises UserError for what an engine cannot do, naming one that can.

    FSDP2 and ZeRO 3 gather weights module by module.
    """
    if isinstance(config, TrainAloe):
        if name == "zero3":
            raise UserError(
                "ALOE calls its blocks as often as its questions need, and engine zero3 needs "
                "the same number of calls on every process: take zero2"
            )
        return
    causal = config.ctt.invariance.weight > 0 or config.ctt.sufficiency.weight > 0
    if (
        causal
        and config.ctt.kind == "per_sample"
        and config.ctt.graph.estimator == "gradient"
        and name in ("fsdp2", "zero3")
    ):
        raise UserError(
            f"ctt.graph.estimator=gradient cannot differentiate through what engine {name} "
            "gathers: take ddp, zero1 or zero2"
        )
    if causal and config.loop.gradient_accumulation > 1 and name == "zero3":
        raise UserError(
            "loop.gradient_accumulation with causal terms needs a forward outside of the pass that "
            "engine zero3 gathers weights for: take zero2 or fsdp2"
        )
