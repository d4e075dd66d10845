"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from cjepa_dist.config.schema import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up from final * lr, then constant or cosine down to final * lr."""
    warmup = config.warmup_ratio * steps
    if step < warmup:
        share = config.min_lr_ratio + (1 - config.min_lr_ratio) * (step + 1) / warmup
    elif config.schedule == "cosine":
        progress = (step - warmup) / max(1.0, steps - warmup)
        share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    else:
        share = 1.0
    return config.lr * min(share, 1.0)
