"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from cjepa_dist.config.schema import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up from min_lr_ratio * lr; then constant, or a cosine down to it again."""
    warmup = config.warmup_ratio * steps
    if step < warmup:
        factor = config.min_lr_ratio + (1 - config.min_lr_ratio) * (step + 1) / warmup
    elif config.schedule == "cosine":
        progress = (step - warmup) / max(1.0, steps - warmup)
        factor = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    else:
        factor = 1.0
    return config.lr * min(factor, 1.0)
