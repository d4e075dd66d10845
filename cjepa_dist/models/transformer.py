"""Transformer blocks for both models.

    x (B, N, W) ──> x + attention(x)       ──> x + mlp(norm(x))    released C-JEPA
                    x + attention(norm(x)) ──> x + mlp(norm(x))    norm_first: ALOE, our C-JEPA

On CUDA the attention is one fused call, and its weights are never stored. On the CPU it is computed
step by step: the backward pass of the fused CPU kernel is slow for short sequences and narrow
heads, most of all in bfloat16 (28 tokens, 16 heads of 8: three times slower).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.models.dropout import apply_dropout

KeyValue = tuple[Tensor, Tensor]  # keys and values, (B, heads, N, d) each
CosSin = tuple[Tensor, Tensor]  # cosines and sines of rotary positions, (N, d / 2) each

MASK_BIAS = -3e4  # added to the logits of padding: their weights become 0
LONG_ROW = 64  # logits in a row from which on torch's own softmax is the faster one


def manual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    dropout: float,
    prefix_kv: KeyValue | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k' / sqrt(d)) v and the weights before dropout, for q, k, v (B, heads, N, d).

    `padding` (B, 1, 1, N) bool: True = key to ignore. `prefix_kv`: keys and values (B, heads, M, d)
    of M more tokens, before those of k and v. The two parts of the weights are joined, not the
    keys and values: the weights are smaller.
    """
    q = padded_q = q * (1 / math.sqrt(q.shape[-1]))
    padded_k = k
    if padding is not None:
        # The bias of padding is one more dimension of queries and keys: adding it to all logits
        # would be one more pass over them, forward and backward.
        padded_q = F.pad(q, (0, 1), value=1.0)
        bias = padding.transpose(-2, -1).to(k.dtype) * MASK_BIAS
        padded_k = torch.cat([k, bias.expand(*k.shape[:-1], 1)], dim=-1)
    logits = padded_q @ padded_k.transpose(-2, -1)
    if prefix_kv is None:
        weights = softmax(logits)
        return apply_dropout(weights, dropout) @ v, weights
    prefix_k, prefix_v = prefix_kv
    weights = softmax(torch.cat([q @ prefix_k.transpose(-2, -1), logits], dim=-1))
    sizes = [prefix_k.shape[2], k.shape[2]]
    on_prefix, on_own = apply_dropout(weights, dropout).split(sizes, dim=-1)
    return on_prefix @ prefix_v + on_own @ v, weights


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, computed in float32 or better.

    The CPU's own kernel for bfloat16 is slow for short rows. For long rows it is seven times as
    fast as a conversion to float32, with the same result.
    """
    if logits.shape[-1] >= LONG_ROW:
        return logits.softmax(-1)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(-1, dtype=wide).to(logits.dtype)


def rotary_angles(position: Tensor, head_width: int) -> CosSin:
    """Cosines and sines (N, d / 2) of rotary embeddings (arXiv 2104.09864) for positions (N,).

    The lowest frequency is 1/100 radian a position: a window has some tens of frames, not
    thousands of words.
    """
    frequency = 100.0 ** -torch.linspace(0, 1, head_width // 2, device=position.device)
    angle = position[:, None] * frequency
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, rotary: CosSin) -> Tensor:
    """x (B, heads, N, d) with the pairs (m, m + d / 2) of its dimensions rotated."""
    (cos, sin), (a, b) = (part.to(x.dtype) for part in rotary), x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with the parameters and initial values of nn.MultiheadAttention."""

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
        num_queries: int | None = None,
        prefix_kv: KeyValue | None = None,
        rotary: CosSin | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, W) -> (B, N, W) and, if asked, the weights (B, heads, N, N) before dropout.

        `padding` (B, N) bool: keys to ignore. `num_queries`: only the first so many tokens are
        queries, so the results and the rows of the weights are as many. `prefix_kv`: keys and
        values of M more tokens, from `project_kv`; every query sees them, and in the weights they
        come first. `rotary`: cosines and sines (N, d / 2) that rotate queries and keys.
        """
        batch, width = x.shape[0], x.shape[2]
        queries = x.shape[1] if num_queries is None else num_queries
        if num_queries is None:
            qkv = self.qkv(x).view(batch, queries, 3, self.heads, width // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
        else:
            q = F.linear(x[:, :num_queries], self.qkv.weight[:width], self.qkv.bias[:width])
            q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = self.project_kv(x)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        dropout = self.dropout if self.training else 0.0
        ignored = None if padding is None else padding[:, None, None, :]
        weights = None
        if need_weights or not x.is_cuda:
            mixed, weights = manual_attention(q, k, v, ignored, dropout, prefix_kv)
        else:
            if prefix_kv is not None:
                prefix_k, prefix_v = prefix_kv
                k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)
                ignored = None if ignored is None else F.pad(ignored, (prefix_k.shape[2], 0))
            attended = None if ignored is None else ~ignored
            mixed = F.scaled_dot_product_attention(q, k, v, attended, dropout)
        out = self.out(mixed.transpose(1, 2).reshape(batch, queries, width))
        return out, weights if need_weights else None

    def project_kv(self, x: Tensor) -> KeyValue:
        """Keys and values (B, heads, N, d) of tokens (B, N, W)."""
        width = x.shape[2]
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v


class Block(nn.Module):
    """Attention and a feed-forward network, each added to its input.

    `drop_attention_output`: dropout on the output of attention too, as in the released ALOE; the
    released C-JEPA has it on the attention weights only.
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
        num_queries: int | None = None,
        prefix_kv: KeyValue | None = None,
        rotary: CosSin | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, W) -> (B, N, W) and, if asked, the attention weights. Arguments: see Attention."""
        p = self.dropout if self.training else 0.0
        normed = self.attention_norm(x)
        mixed, weights = self.attention(
            normed, padding, need_weights, num_queries, prefix_kv, rotary
        )
        x = x[:, :num_queries] + (apply_dropout(mixed, p) if self.drop_attention_output else mixed)
        wide = self.up(self.norm(x))
        wide = F.relu(wide) if self.relu else F.gelu(wide)
        return x + apply_dropout(self.down(apply_dropout(wide, p)), p), weights

    def project_kv(self, x: Tensor) -> KeyValue:
        """Keys and values (B, heads, N, d) of tokens (B, N, W), for others' `prefix_kv`."""
        return self.attention.project_kv(self.attention_norm(x))
