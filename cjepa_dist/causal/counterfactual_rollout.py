"""What would have happened without an object: a rollout in which only what the removal has reached leaves the observed world.

    factual world (V, T, S, D), removed slots ──> a block of frames at a time, `frameskip` interleaved sequences in one batch:

        history without r ──predictor──> z ──┬── reached by the removal, now or before ──> z
        history with r    ──predictor──> e ──┤── not reached ────────────────────────────> the factual value, to the bit
                            (all blocks at   └── r itself ───────────────────────────────> the empty slot
                             once, cached)

Whether the removal has reached a slot is a rule (`Reached`). `Paired` compares z with e: a slot that was not reached so far has the same
past in both worlds, so a difference is the effect of do(all slots that were := their counterfactual values), by the larger of what r did in
the one world and what its absence lets happen in the other. One forward a block. `ByGraph` asks any estimator of `causal.graph` in both
worlds. Late entries come from the factual world, which no rollout could invent; frames after those observed are the factual rollout's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cjepa_dist.causal.graph import GraphContext, estimate
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.windows import PRESENT
from cjepa_dist.models.predictor import SlotPredictor


@dataclass(frozen=True)
class Block:
    """What a rule sees of W worlds at the block of F = T_p x frameskip frames that starts at frame `start`; H = T_h, K = frameskip."""

    start: int
    rows: Tensor  # (W,) int64: which of the worlds these are
    history: Tensor  # (W, K, H, S, D) without r
    factual: Tensor  # (W, K, H, S, D) with r
    predicted: Tensor  # (W, F, S, D) from `history`
    expected: Tensor  # (W, F, S, D) from `factual`
    held: (
        Tensor  # (W, K, S) bool: the factual slot holds something in the last frame of each history
    )
    diverged: Tensor  # (W, S) bool: reached before this block

    def present(self) -> Tensor:
        """(W, F, S): `held`, by frame of the block."""
        frames, streams = self.predicted.shape[1], self.held.shape[1]
        return self.held.repeat(1, -(-frames // streams), 1)[:, :frames]


FACTOR = 2.0  # see `Paired`
Reached = Callable[
    [Block], Tensor
]  # -> (W, F, S) bool: reached at a frame of the block; frames after it are reached as well


def expected(
    predictor: SlotPredictor, slots: Tensor, frameskip: int, *, windows: int = 512
) -> Tensor:
    """What the predictor says at every frame of the factual worlds (V, T, S, D), given what came before it: (V, T, S, D).

    The first T_h x frameskip frames, which nothing predicts, are as in `slots`. `windows` at once: more do not fit into a CPU's cache.
    """
    span, found = predictor.config.history_frames * frameskip, slots.clone()
    starts = list(blocks(predictor, slots.shape[1], frameskip))
    at_once = max(1, windows // (len(slots) * frameskip))
    for group in (starts[i : i + at_once] for i in range(0, len(starts), at_once)):
        past = torch.cat([slots[:, start - span : start] for start in group])
        for start, future in zip(
            group, ahead(predictor, interleaved(past, frameskip)).split(len(slots))
        ):
            stop = min(slots.shape[1], start + future.shape[1])
            found[:, start:stop] = future[:, : stop - start].to(found.dtype)
    return found


def without(
    predictor: SlotPredictor,
    slots: Tensor,
    expected: Tensor,
    video: Tensor,
    removed: Tensor,
    reached: Reached,
    *,
    frameskip: int,
    empty: Tensor,
) -> tuple[Tensor, Tensor]:
    """W worlds: `video` (W,) int64 of the factual `slots` (V, T, S, D), `removed` (W,) int64 slot -> worlds (W, T, S, D), diverged (W, S).

    `slots` go on behind what was observed with the predictor's rollout; `expected` as the function (rules that do not read it take
    anything of that shape). `diverged` is the first frame at which a slot is no longer the factual one: 0 for the removed slot, T for one
    that never is. `empty` (D,) is the slot that holds nothing. The first T_h x frameskip frames can only be the factual ones, without r.
    """
    frames = slots.shape[1]
    gone = torch.arange(slots.shape[2], device=slots.device) == removed[:, None]
    held = holds(slots, empty)
    worlds = torch.where(gone[:, None, :, None], empty.to(slots), slots[video])
    diverged = torch.where(gone, 0, frames)
    span, ahead_by = (
        predictor.config.history_frames * frameskip,
        predictor.config.pred_frames * frameskip,
    )
    for start in blocks(predictor, frames, frameskip):
        past, future = slice(start - span, start), slice(start, min(start + ahead_by, frames))
        # A world whose history is the factual one, r being out of view and nobody else reached, needs no forward.
        if isinstance(reached, AtFrames):
            touched = ((reached.frames < future.stop) & ~gone).any(dim=1)
        else:
            touched = (held[video, past] & gone[:, None]).any(dim=(1, 2)) | (
                (diverged < start) & ~gone
            ).any(dim=1)
        rows = touched.nonzero()[:, 0]
        if not len(rows):
            continue
        history, source = interleaved(worlds[rows, past], frameskip), video[rows]
        block = Block(
            start=start,
            rows=rows,
            history=history,
            factual=interleaved(slots[source, past], frameskip),
            predicted=ahead(predictor, history)[:, : future.stop - start].to(worlds.dtype),
            expected=expected[source, future],
            held=held[source, start - frameskip : start],
            diverged=diverged[rows] < start,
        )
        now = (
            ((reached(block) | block.diverged[:, None]) & ~gone[rows][:, None]).cummax(dim=1).values
        )
        worlds[rows, future] = torch.where(now[..., None], block.predicted, worlds[rows, future])
        diverged[rows] = torch.where(
            now.any(dim=1),
            torch.minimum(diverged[rows], future.stop - now.sum(dim=1)),
            diverged[rows],
        )
    return worlds, diverged


@dataclass(frozen=True)
class Paired:
    """Reached: the two predictions differ by more than `tau` nats, sum_d (z - e)^2 / (2 sigma_d^2), as in `causal.intervention`.

    tau = FACTOR x the predictor's median one-step residual in that unit, without labels: a difference of two predictions has the variance
    of both.
    """

    sigma2: Tensor  # (D,)
    tau: Tensor  # ()

    def __call__(self, block: Block) -> Tensor:
        nats = ((block.predicted - block.expected).square() / (2 * self.sigma2)).sum(dim=-1)
        return (nats > self.tau) & block.present()


@dataclass(frozen=True)
class ByGraph:
    """Reached: an edge (A > 0.5) from a slot that was reached, in the factual or in the counterfactual history.

    `truth(block, factual)` gives labels of the W x K windows to estimators that read them; None where the data has no truth.
    """

    predictor: SlotPredictor
    config: GraphConfig
    context: GraphContext
    empty: Tensor
    truth: Callable[[Block, bool], dict[str, Tensor] | None] = lambda block, factual: None

    def __call__(self, block: Block) -> Tensor:
        worlds, streams = block.history.shape[:2]
        sample = (
            block.rows[:, None] * streams + torch.arange(streams, device=block.rows.device)
        ).flatten()
        context = dataclasses.replace(self.context, sample=sample, step=block.start)
        edge = torch.zeros((), dtype=torch.bool, device=block.rows.device)
        for windows, is_factual in ((block.factual, True), (block.history, False)):
            history = windows.flatten(0, 1)
            present = holds(history[:, -1], self.empty)
            graph = estimate(
                self.config,
                self.predictor,
                history,
                present,
                context=context,
                truth=self.truth(block, is_factual),
            )
            edge = edge | (graph.adjacency > 0.5)
        struck = (edge.unflatten(0, (worlds, streams)) & block.diverged[:, None, None, :]).any(
            dim=-1
        )  # (W, K, S)
        frames = block.predicted.shape[1]
        return struck.repeat(1, -(-frames // streams), 1)[:, :frames]


@dataclass(frozen=True)
class AtFrames:
    """Reached: from given frames on, (W, S): the truth's, 0 for everybody (a free rollout), or T (the factual world without r).

    `entered`: not before the slot holds something. No rollout can invent an entry; the factual one is nearer.
    """

    frames: Tensor
    entered: bool = False

    def __call__(self, block: Block) -> Tensor:
        now = block.start + torch.arange(block.predicted.shape[1], device=self.frames.device)
        reached = now[None, :, None] >= self.frames[block.rows][:, None]
        return reached & block.present() if self.entered else reached


def blocks(predictor: SlotPredictor, frames: int, frameskip: int) -> Iterator[int]:
    """The first frames of the blocks that a rollout of `frames` frames predicts."""
    config = predictor.config
    return iter(range(config.history_frames * frameskip, frames, config.pred_frames * frameskip))


def interleaved(frames: Tensor, frameskip: int) -> Tensor:
    """(N, H x K, S, D) consecutive frames -> (N, K, H, S, D): K sequences of every K-th frame."""
    return frames.unflatten(1, (-1, frameskip)).transpose(1, 2)


def ahead(predictor: SlotPredictor, history: Tensor) -> Tensor:
    """The frames that follow (N, K, H, S, D), in the order of time: (N, T_p x K, S, D)."""
    z = predictor.predict(history.flatten(0, 1))  # (N K, T_p, S, D)
    return z.unflatten(0, history.shape[:2]).transpose(1, 2).flatten(1, 2)


def holds(slots: Tensor, empty: Tensor) -> Tensor:
    """(..., D) -> (...) bool: not the empty slot."""
    return (slots - empty.to(slots)).square().mean(dim=-1) > PRESENT
