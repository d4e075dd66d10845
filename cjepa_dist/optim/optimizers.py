"""Optimizers: Adam, AdamW and Muon."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_dist.config.schema import OptimizerConfig
from cjepa_dist.models.transformer import Block
from cjepa_dist.runtime.collectives import full_tensor, shard_like
from cjepa_dist.runtime.device import native_precision


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One optimizer; or two with `muon`: Muon for `hidden_matrices`, AdamW for all else.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`), so that both can use the
    same learning rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.name == "adam":
        return [torch.optim.Adam(parameters, lr=config.lr, fused=True)]
    if config.name == "adamw":
        return [
            torch.optim.AdamW(
                parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
            )
        ]
    groups = hidden_matrices(model)
    hidden = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in parameters if id(p) not in hidden]
    muon = Muon(groups, lr=config.lr, weight_decay=config.weight_decay)
    return [
        muon,
        torch.optim.AdamW(rest, lr=config.lr, weight_decay=config.weight_decay, fused=True),
    ]


def hidden_matrices(model: nn.Module) -> list[dict[str, Any]]:
    """The matrices of all Blocks, as parameter groups of Muon.

    `matrices` says how many a parameter holds, one below the other: Q, K and V are three. Input and
    output layers and embeddings are not among them: Muon's update, of one size in all directions,
    is meant for maps between hidden layers (Jordan et al. 2024).
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    three = [block.attention.qkv.weight for block in blocks]
    one = [
        layer.weight for block in blocks for layer in (block.attention.out, block.up, block.down)
    ]
    groups = ((3, three), (1, one))
    trained = [(count, [p for p in ps if p.requires_grad]) for count, ps in groups]
    return [{"params": ps, "matrices": count} for count, ps in trained if ps]


class Muon(torch.optim.Muon):
    """torch's Muon with `match_rms_adamw`, for parameters that may hold several matrices.

    A group's `matrices` says how many, one below the other; each has its own update. Newton-Schulz
    steps are in float32 where the device lacks bfloat16: on a CPU with AVX2 alone, torch's own take
    three quarters of a small model's step, 0.34 s of 0.46. Elsewhere single matrices are equal to
    torch's bit for bit; so is the state.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        for group in self.param_groups:
            group.setdefault("matrices", 1)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        dtype = torch.bfloat16 if native_precision() == "bf16" else torch.float32
        for group in self.param_groups:
            lr, momentum, count = group["lr"], group["momentum"], group["matrices"]
            newton_schulz = group["ns_coefficients"], group["ns_steps"], group["eps"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(
                        p.grad, memory_format=torch.preserve_format
                    )
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = (
                    p.grad.lerp(state["momentum_buffer"], momentum)
                    if group["nesterov"]
                    else state["momentum_buffer"]
                )
                update = orthogonalize_each(update.to(dtype), count, *newton_schulz)
                longer_side = max(p.shape[0] // count, p.shape[1])
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-(lr * (0.2 * math.sqrt(longer_side))))  # match_rms_adamw


Coefficients = tuple[float, float, float]


def orthogonalize_each(
    x: Tensor, count: int, coefficients: Coefficients, steps: int, eps: float
) -> Tensor:
    """`orthogonalize` for each of `count` matrices that are stored as one (count * n, m)."""
    if count == 1:
        return orthogonalize(x, coefficients, steps, eps)
    # A sharded one is gathered: its parts do not end where the matrices do.
    full = full_tensor(x)
    full = orthogonalize(full.unflatten(0, (count, -1)), coefficients, steps, eps).flatten(0, 1)
    return shard_like(full, x)


def orthogonalize(x: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """The matrix (n, m), or each of (count, n, m), with its singular values moved close to 1.

    By Newton-Schulz iterations (Jordan et al. 2024, Muon).
    """
    a, b, c = coefficients
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    transposed = x.size(-2) > x.size(-1)
    x = x.mT if transposed else x
    norm = x.norm() if x.ndim == 2 else torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norm.clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x
