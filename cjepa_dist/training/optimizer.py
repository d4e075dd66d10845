"""Update rules, and the learning rate as a function of the step: no scheduler objects, nothing to restore."""

from __future__ import annotations

import math

import torch
from torch import nn

from cjepa_dist.config import OptimizerConfig


def optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One optimizer, or two with `muon`: Muon on the hidden matrices, AdamW on embeddings, vectors and heads.

    Muon is scaled so that its updates have AdamW's size (`match_rms_adamw`), hence one learning rate serves both.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    if config.name == "adam":
        return [torch.optim.Adam(parameters, lr=config.lr, fused=True)]
    if config.name == "adamw":
        return [torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)]
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.lr, weight_decay=config.weight_decay, fused=True),
    ]


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up from final * lr, then constant or cosine down to final * lr."""
    warmup = config.warmup * steps
    if step < warmup:
        share = config.final + (1 - config.final) * (step + 1) / warmup
    elif config.schedule == "cosine":
        progress = (step - warmup) / max(1.0, steps - warmup)
        share = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1.0
    return config.lr * min(share, 1.0)
