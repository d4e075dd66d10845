"""Graphs read from attention weights: who looks at whom.

    last layer, mean over heads ──> first future frame's rows ──> MEAN over key frames ──> published (rows sum to 1 / T)
                               └──> all future rows, SUM over key frames ──> no diagonal, rows sum to 1 ──> per sample
    all layers, (I + mean head) / 2 ──> product ──> future rows, sum over key frames ──> rollout

Tokens are frame-major, so an (N, N) matrix with N = T * S is viewed as (T, S, T, S): query frame, query slot, key frame, key slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def attention_maps(
    predictor: nn.Module, history: Tensor, hidden: Tensor, *, last: bool = False
) -> list[Tensor]:
    """Attention weights of each layer, (B, heads, N, N) with rows that sum to 1, for `history` (B, T_h, S, D) and `hidden` (B, S) bool.

    `last`: of the last layer alone, and its rows are those of the future, (B, heads, T_p * S, N): an eighth less work at depth 6.
    """
    _, maps = predictor(history, hidden, need_attention="last" if last else True, future_only=last)
    return list(maps)


def published_adjacency(last: Tensor, history_frames: int, slots: int) -> Tensor:
    """The released graph of each sample, (B, S, S): rows sum to 1 / T_total, the diagonal is kept.

    `last` (B, heads, N, N), or its rows of the future alone, is the last layer. Mean over heads, queries of the first future frame,
    mean over key frames.
    The released losses average it over the batch as well (see `losses.ctt.published`), which makes it a constant; that is theirs.
    """
    return future_rows(last, history_frames, slots)[:, 0].mean(dim=2)


def attention_scores(last: Tensor, history_frames: int, slots: int, present: Tensor) -> Tensor:
    """Share of i's attention to other objects that goes to j, (B, S, S): rows sum to 1 over present j other than i, else 0.

    Mean over heads and future frames, sum over key frames: without the sum, the share falls with the length of the window.
    The diagonal goes first, because most of a query's attention is on its own slot and says nothing about others.
    """
    rows = future_rows(last, history_frames, slots).sum(dim=3).mean(dim=1)
    rows = rows * pairs(present)
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def rollout_scores(
    maps: Sequence[Tensor], history_frames: int, slots: int, present: Tensor
) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020), (B, S, S): the product over layers of (I + attention) / 2, future i to all frames of j.

    The residual connection is the identity's half. Mean over future frames; rows are NOT normalised: how much leaves i at all is
    information.
    """
    flow = None
    for layer in maps:
        mean = layer.float().mean(dim=1)
        step = 0.5 * (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device))
        flow = step if flow is None else step @ flow
    assert flow is not None, "a transformer has at least one layer"
    rows = future_rows(flow[:, None], history_frames, slots).sum(dim=3).mean(dim=1)
    return rows * pairs(present)


def row_tau(scores: Tensor, present: Tensor, factor: float = 2.0) -> Tensor:
    """Half-way score of an attention graph, (B, S, 1): `factor` / (number of present slots) of what row i gives to others.

    Attention has no unit, so the only scale is indifference: a query that looks at every object alike gives each other one about 1 / n of
    its row. Twice that is an edge. In a scene of two objects the one possible share, 1, equals 2 / n and stays at A = 0.5: no edge, since
    a row that must sum to 1 cannot tell.
    """
    count = present.sum(dim=-1).clamp_min(1)[:, None, None]
    return (factor / count) * scores.sum(dim=-1, keepdim=True)


def pairs(present: Tensor) -> Tensor:
    """(B, S, S) bool: both slots hold an object, and they are two."""
    both = present[:, :, None] & present[:, None, :]
    return both & ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)


def future_rows(maps: Tensor, history_frames: int, slots: int) -> Tensor:
    """(B, heads, N or T_p * S, N) -> mean over heads as (B, T_p, S, T, S), float32."""
    future = maps.shape[-1] - history_frames * slots
    return (
        maps[:, :, -future:].float().mean(dim=1).unflatten(2, (-1, slots)).unflatten(1, (-1, slots))
    )
