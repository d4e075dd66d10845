"""Transformer blocks for both models.

    x (B, N, W) ──> x + attention(x) ──> x + mlp(norm(x))          published order (C-JEPA): no norm before attention
                    x + attention(norm(x)) ──> x + mlp(norm(x))    norm_first (ALOE, and our own C-JEPA)

On CUDA the attention is one fused call, and its weights are never stored. On the CPU it is written out: the fused CPU kernel's backward
is slow for short sequences and narrow heads, most of all in bfloat16 (28 tokens, 16 heads of 8: three times slower).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
HIDDEN = -3e4  # added to logits of padding: nothing is left of it
LONG = 64  # of a row of logits


def manual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    dropout: float,
    memory: Pair | None = None,
) -> Pair:
    """softmax(q k' / sqrt(d)) v and the weights before dropout, for q, k, v (B, heads, N, d); `padding` (B, 1, 1, N), True = ignore.

    `memory`: keys and values (B, heads, M, d) that come first. They are not copied beside the others: the weights are, which are smaller.
    """
    q = asking = q * (1 / math.sqrt(q.shape[-1]))
    offered = k
    if (
        padding is not None
    ):  # as one more number of queries and keys, not as a pass over all logits, forward and backward
        asking = F.pad(q, (0, 1), value=1.0)
        offered = torch.cat(
            [k, (padding.transpose(-2, -1).to(k.dtype) * HIDDEN).expand(*k.shape[:-1], 1)], dim=-1
        )
    logits = asking @ offered.transpose(-2, -1)
    if memory is None:
        weights = softmax(logits)
        return apply_dropout(weights, dropout) @ v, weights
    weights = softmax(torch.cat([q @ memory[0].transpose(-2, -1), logits], dim=-1))
    first, second = apply_dropout(weights, dropout).split([memory[0].shape[2], k.shape[2]], dim=-1)
    return first @ memory[1] + second @ v, weights


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis, computed in float32 or better. A CPU's own kernel for bfloat16 is slow for short rows; long ones it takes
    seven times as fast as by way of float32 tensors, with the same result.
    """
    if logits.shape[-1] >= LONG:
        return logits.softmax(-1)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(
        logits.dtype
    )


def apply_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout with probability p, from torch's default generator.

    torch's own draws one number after another on the CPU and took two thirds of ALOE's attention. There, eagerly, each 64-bit draw
    serves four elements (p is rounded to 1/65536 and the scale follows) and comes from numpy's SFC64, whose seed torch's generator draws:
    six times faster. Elsewhere it is torch's.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or p >= 1 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = round(p * 65536)
    draws = (
        np.random.SFC64(int(torch.randint(1 << 62, ())))
        .random_raw(-(-x.numel() // 4))
        .view(np.int16)[: x.numel()]
    )
    keep = torch.ge(
        torch.from_numpy(draws).view(x.shape),
        dropped - 32768,
        out=torch.empty(x.shape, dtype=x.dtype),
    )
    return x * keep.mul_(65536 / (65536 - dropped))


def rotary_angles(place: Tensor, head_width: int) -> Pair:
    """Cosines and sines (N, d / 2) of rotary positions (arXiv 2104.09864) for places (N,), such as frame numbers.

    The slowest pair turns 1/100 radian a place: windows are some tens of frames, not thousands of words.
    """
    speed = 100.0 ** -torch.linspace(0, 1, head_width // 2, device=place.device)
    angle = place[:, None] * speed
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, turn: Pair) -> Tensor:
    """x (B, heads, N, d) with the pairs (m, m + d / 2) of its numbers rotated."""
    (cos, sin), (a, b) = (part.to(x.dtype) for part in turn), x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention, one matrix for queries, keys and values; parameters and initial values of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        need_weights: bool = False,
        first: int | None = None,
        memory: Pair | None = None,
        turn: Pair | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, W) -> (B, N, W) and, if asked, the weights (B, heads, N, N) before dropout. `padding` (B, N) bool: keys to ignore.

        With `first`, only the first so many tokens ask, so N of the results (and of the weights' rows) is that. `memory` are keys and
        values of M more tokens that are all seen and do not ask (see `keys`); in the weights they come first. `turn`: cosines and sines
        (N, d / 2) by which queries and keys are rotated (see `rotation`).
        """
        batch, width = x.shape[0], x.shape[2]
        asked = x.shape[1] if first is None else first
        if first is None:
            q, k, v = (
                self.qkv(x)
                .view(batch, asked, 3, self.heads, width // self.heads)
                .permute(2, 0, 3, 1, 4)
            )
        else:
            q = (
                F.linear(x[:, :first], self.qkv.weight[:width], self.qkv.bias[:width])
                .unflatten(-1, (self.heads, -1))
                .transpose(1, 2)
            )
            k, v = self.keys(x)
        if turn is not None:
            q, k = apply_rotary(q, turn), apply_rotary(k, turn)
        dropout = self.dropout if self.training else 0.0
        ignored = None if padding is None else padding[:, None, None, :]
        weights = None
        if need_weights or not x.is_cuda:
            mixed, weights = manual_attention(q, k, v, ignored, dropout, memory)
        else:
            if memory is not None:
                k, v = torch.cat([memory[0], k], dim=2), torch.cat([memory[1], v], dim=2)
                ignored = None if ignored is None else F.pad(ignored, (memory[0].shape[2], 0))
            mixed = F.scaled_dot_product_attention(
                q, k, v, None if ignored is None else ~ignored, dropout
            )
        return self.out(
            mixed.transpose(1, 2).reshape(batch, asked, width)
        ), weights if need_weights else None

    def keys(self, x: Tensor) -> Pair:
        """Keys and values (B, heads, N, d) of tokens (B, N, W)."""
        width = x.shape[2]
        k, v = (
            F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            .unflatten(-1, (2, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        return k, v


class Block(nn.Module):
    """Attention and a feed-forward network, each added to its input.

    `drop_attention_output` is the released models' difference: ALOE drops the output of attention too, C-JEPA only its weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_dim: int,
        dropout: float,
        *,
        norm_first: bool,
        relu: bool = False,
        drop_attention_output: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.relu, self.drop_attention_output = dropout, relu, drop_attention_output
        self.attention_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.attention = Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)

    def forward(
        self,
        x: Tensor,
        padding: Tensor | None = None,
        need_weights: bool = False,
        first: int | None = None,
        memory: Pair | None = None,
        turn: Pair | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, W) -> (B, N, W) and, if asked, the attention weights (B, heads, N, N). The other arguments as in Attention."""
        p = self.dropout if self.training else 0.0
        mixed, weights = self.attention(
            self.attention_norm(x), padding, need_weights, first, memory, turn
        )
        x = x[:, :first] + (apply_dropout(mixed, p) if self.drop_attention_output else mixed)
        wide = self.up(self.norm(x))
        wide = F.relu(wide) if self.relu else F.gelu(wide)
        return x + apply_dropout(self.down(apply_dropout(wide, p)), p), weights

    def keys(self, x: Tensor) -> Pair:
        """What tokens (B, N, W) offer to others that see them as `memory`: two of (B, heads, N, d)."""
        return self.attention.keys(self.attention_norm(x))
