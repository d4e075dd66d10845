"""Counterfactual rollout: what would have happened without an object.

Only slots that the removal has influenced leave the factual world. A block of frames at a time,
with the `frameskip` interleaved sequences of a video in one batch:

    factual world (V, T, S, D), removed slots r
      history without r ──predictor──> z ──┬── diverged, now or before ──> z history with r
      ──predictor──> e ──┼── not diverged ─────────────> the factual value, exactly (all blocks at
      once, cached)         └── r itself ─────────────────> the empty slot

A rule of `causal.divergence` says which slots have diverged; most need one forward pass a block.
Objects that enter late come from the factual world, because a rollout cannot predict them. Frames
after those observed are the rollout of the factual world.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cjepa_dist.causal.divergence import DivergenceRule, GivenFramesRule, RolloutBlock, is_present
from cjepa_dist.models.predictor import SlotPredictor


def predict_factual(
    predictor: SlotPredictor, slots: Tensor, frameskip: int, *, windows: int = 512
) -> Tensor:
    """The prediction of every frame of the factual worlds (V, T, S, D) from true histories.

    Returns (V, T, S, D). The first T_h x frameskip frames have no history: they are as in `slots`.
    `windows` at once: more do not fit into the cache of a CPU.
    """
    span, predicted = predictor.config.history_frames * frameskip, slots.clone()
    starts = list(block_starts(predictor, slots.shape[1], frameskip))
    group_size = max(1, windows // (len(slots) * frameskip))
    for group in (starts[i : i + group_size] for i in range(0, len(starts), group_size)):
        past = torch.cat([slots[:, start - span : start] for start in group])
        future = predict_block(predictor, deinterleave(past, frameskip))
        for start, frames in zip(group, future.split(len(slots)), strict=True):
            stop = min(slots.shape[1], start + frames.shape[1])
            predicted[:, start:stop] = frames[:, : stop - start].to(predicted.dtype)
    return predicted


def rollout_without_object(
    predictor: SlotPredictor,
    slots: Tensor,
    expected: Tensor,
    video: Tensor,
    removed: Tensor,
    rule: DivergenceRule,
    *,
    frameskip: int,
    empty: Tensor,
) -> tuple[Tensor, Tensor]:
    """W worlds without an object: worlds (W, T, S, D), diverged (W, S).

    World w is video `video[w]` of the factual `slots` (V, T, S, D) without slot `removed[w]`; both
    (W,) int64. After the observed frames, `slots` are the predictor's rollout. `expected` is the
    result of `predict_factual` (a rule that does not read it takes any tensor of its shape).
    `empty` (D,) is the slot that holds nothing. `diverged` is the first frame at which a slot
    leaves the factual world: 0 for the removed slot, T for a slot that never does. The first T_h x
    frameskip frames are the factual ones without r.
    """
    frames = slots.shape[1]
    gone = torch.arange(slots.shape[2], device=slots.device) == removed[:, None]
    present = is_present(slots, empty)
    worlds = torch.where(gone[:, None, :, None], empty.to(slots), slots[video])
    diverged = torch.where(gone, 0, frames)
    span = predictor.config.history_frames * frameskip
    step = predictor.config.pred_frames * frameskip
    for start in block_starts(predictor, frames, frameskip):
        past, future = slice(start - span, start), slice(start, min(start + step, frames))
        # A world whose history is the factual one (r not present, no other slot diverged) needs no
        # forward pass.
        if isinstance(rule, GivenFramesRule):
            differs = ((rule.frames < future.stop) & ~gone).any(dim=1)
        else:
            removed_present = (present[video, past] & gone[:, None]).any(dim=(1, 2))
            differs = removed_present | ((diverged < start) & ~gone).any(dim=1)
        rows = differs.nonzero()[:, 0]
        if not len(rows):
            continue
        history, source = deinterleave(worlds[rows, past], frameskip), video[rows]
        block = RolloutBlock(
            start=start,
            rows=rows,
            history=history,
            factual=deinterleave(slots[source, past], frameskip),
            predicted=predict_block(predictor, history)[:, : future.stop - start].to(worlds.dtype),
            expected=expected[source, future],
            present=present[source, start - frameskip : start],
            diverged=diverged[rows] < start,
        )
        now = (rule(block) | block.diverged[:, None]) & ~gone[rows][:, None]
        now = now.cummax(dim=1).values
        worlds[rows, future] = torch.where(now[..., None], block.predicted, worlds[rows, future])
        first = torch.minimum(diverged[rows], future.stop - now.sum(dim=1))
        diverged[rows] = torch.where(now.any(dim=1), first, diverged[rows])
    return worlds, diverged


def block_starts(predictor: SlotPredictor, frames: int, frameskip: int) -> Iterator[int]:
    """The first frame of each block that a rollout of `frames` frames predicts."""
    config = predictor.config
    return iter(range(config.history_frames * frameskip, frames, config.pred_frames * frameskip))


def deinterleave(frames: Tensor, frameskip: int) -> Tensor:
    """(N, H x K, S, D) consecutive frames -> (N, K, H, S, D): K sequences of every K-th frame."""
    return frames.unflatten(1, (-1, frameskip)).transpose(1, 2)


def predict_block(predictor: SlotPredictor, history: Tensor) -> Tensor:
    """The frames that follow (N, K, H, S, D), in the order of time: (N, T_p x K, S, D)."""
    z = predictor.predict(history.flatten(0, 1))  # (N K, T_p, S, D)
    return z.unflatten(0, history.shape[:2]).transpose(1, 2).flatten(1, 2)
