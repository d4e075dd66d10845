"""Graphs from attention weights: which slots a slot's prediction attends to.

    last layer, mean over heads
      ├──> rows of the first future frame, MEAN over key frames ──> published (rows sum to 1 / T)
      └──> all future rows, SUM over key frames ──> no diagonal, rows sum to 1 ──> attention
    all layers, (I + mean over heads) / 2
      └──> product ──> future rows, sum over key frames ──> attention rollout

Tokens are frame-major, so an (N, N) matrix with N = T * S is viewed as (T, S, T, S): query frame,
query slot, key frame, key slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def attention_maps(
    predictor: nn.Module, history: Tensor, hidden: Tensor, *, last_only: bool = False
) -> list[Tensor]:
    """Attention weights of each layer, (B, heads, N, N) with rows that sum to 1.

    For `history` (B, T_h, S, D) and `hidden` (B, S) bool. `last_only`: of the last layer only, and
    only its rows of the future, (B, heads, T_p * S, N): an eighth less work at depth 6.
    """
    need = "last" if last_only else True
    _, maps = predictor(history, hidden, need_attention=need, future_only=last_only)
    return list(maps)


def published_adjacency(last: Tensor, history_frames: int, slots: int) -> Tensor:
    """The released graph of each sample, (B, S, S): rows sum to 1 / T_total, with the diagonal.

    `last` (B, heads, N, N), or only its rows of the future, is the attention of the last layer:
    mean over heads, queries of the first future frame, mean over key frames. The released losses
    average the graph over the batch as well (see `losses.ctt.published_terms`), which makes it a
    constant.
    """
    return future_rows(last, history_frames, slots)[:, 0].mean(dim=2)


def attention_scores(last: Tensor, history_frames: int, slots: int, present: Tensor) -> Tensor:
    """Share of i's attention to other objects that goes to j, (B, S, S).

    Rows sum to 1 over present j other than i; all else is 0. Mean over heads and future frames,
    sum over key frames: a mean over key frames would fall with the length of the window. The
    diagonal is removed before rows are normalised: most attention of a query is on its own slot,
    which says nothing about others.
    """
    rows = future_rows(last, history_frames, slots).sum(dim=3).mean(dim=1)
    rows = rows * present_pairs(present)
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def rollout_scores(
    maps: Sequence[Tensor], history_frames: int, slots: int, present: Tensor
) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020), (B, S, S), from future i to all frames of j.

    It is the product over layers of (I + attention) / 2; the identity stands for the residual
    connection. Mean over future frames. Rows are NOT normalised: how much attention leaves i is
    information.
    """
    flow = None
    for layer in maps:
        mean = layer.float().mean(dim=1)
        step = 0.5 * (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device))
        flow = step if flow is None else step @ flow
    assert flow is not None, "a transformer has at least one layer"
    rows = future_rows(flow[:, None], history_frames, slots).sum(dim=3).mean(dim=1)
    return rows * present_pairs(present)


def row_tau(scores: Tensor, present: Tensor, factor: float = 2.0) -> Tensor:
    """The score at which A = 0.5 in an attention graph, (B, S, 1): `factor` / n of the row's sum.

    Attention has no unit. A query that attends to all n present objects alike gives each of them
    about 1 / n of its row; twice that is an edge. In a scene of two objects the only possible
    share, 1, equals 2 / n and stays at A = 0.5: no edge, since a row that must sum to 1 cannot
    tell.
    """
    count = present.sum(dim=-1).clamp_min(1)[:, None, None]
    return (factor / count) * scores.sum(dim=-1, keepdim=True)


def present_pairs(present: Tensor) -> Tensor:
    """Ordered pairs of two different present slots: present (B, S) bool -> (B, S, S) bool."""
    both = present[:, :, None] & present[:, None, :]
    return both & ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)


def present_rows(present: Tensor) -> tuple[Tensor, Tensor]:
    """(window, slot) of each present slot, both (P,) int64: what must be removed, one at a time.

    On a GPU, in a compiled graph and on the meta device of all slots, P = B * S: the number of
    present ones is a value of a tensor, and a GPU would have to be waited for.
    """
    if present.is_cuda or present.is_meta or torch.compiler.is_compiling():
        batch, slots = present.shape
        window = torch.arange(batch, device=present.device).repeat_interleave(slots)
        return window, torch.arange(slots, device=present.device).repeat(batch)
    window, slot = present.nonzero().unbind(dim=1)
    return window, slot


def future_rows(maps: Tensor, history_frames: int, slots: int) -> Tensor:
    """(B, heads, N or T_p * S, N) -> mean over heads as (B, T_p, S, T, S), float32."""
    future = maps.shape[-1] - history_frames * slots
    rows = maps[:, :, -future:].float().mean(dim=1)
    return rows.unflatten(2, (-1, slots)).unflatten(1, (-1, slots))
