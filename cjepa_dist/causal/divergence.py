"""Rules that say which slots the removal of an object has influenced: where worlds diverge.

    PairedRule       the predictions of the two worlds differ by more than tau
    GraphRule        an edge from a diverged slot, by any estimator of `causal.graph`
    GivenFramesRule  from given frames on: the truth, everywhere (free), or nowhere (factual)

A rule is a function of a block of a rollout, see `causal.counterfactual_rollout`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cjepa_dist.causal.graph import GraphContext, estimate_graph
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.windows import PRESENT_DISTANCE
from cjepa_dist.models.predictor import SlotPredictor

TAU_FACTOR = 2.0  # see `PairedRule`


@dataclass(frozen=True)
class RolloutBlock:
    """A block of frames of W worlds, as a rule gets it: F = T_p x frameskip frames from `start` on.

    K = frameskip is the number of interleaved sequences, H = T_h. r is the removed slot.
    """

    start: int
    rows: Tensor  # (W,) int64: which of the worlds these are
    history: Tensor  # (W, K, H, S, D) without r
    factual: Tensor  # (W, K, H, S, D) with r
    predicted: Tensor  # (W, F, S, D) from `history`
    expected: Tensor  # (W, F, S, D) from `factual`
    present: Tensor  # (W, K, S) bool: the factual slot, in the last frame of each history
    diverged: Tensor  # (W, S) bool: diverged before this block

    def present_by_frame(self) -> Tensor:
        """(W, F, S): `present`, for each frame of the block."""
        frames, sequences = self.predicted.shape[1], self.present.shape[1]
        return self.present.repeat(1, -(-frames // sequences), 1)[:, :frames]


# -> (W, F, S) bool: diverged at a frame of the block; then also at all later frames
DivergenceRule = Callable[[RolloutBlock], Tensor]


@dataclass(frozen=True)
class PairedRule:
    """The predictions of the two worlds differ by more than `tau`.

    A slot that has not diverged has the same past in both worlds, so a difference is an effect of
    the removal, directly or through slots that have diverged. The difference is
    sum_d (z - e)^2 / (2 sigma_d^2), as in `causal.interventional_graph`. Without labels, tau is
    TAU_FACTOR x the predictor's median one-step residual. That is a heuristic: the two predictions
    come from one model and share most of their error, so no variance says where to cut.
    """

    sigma2: Tensor  # (D,)
    tau: Tensor  # ()

    def __call__(self, block: RolloutBlock) -> Tensor:
        difference = ((block.predicted - block.expected).square() / (2 * self.sigma2)).sum(dim=-1)
        return (difference > self.tau) & block.present_by_frame()


@dataclass(frozen=True)
class GraphRule:
    """An edge (A > 0.5) from a diverged slot, in the factual or in the counterfactual history.

    `truth(block, is_factual)` gives labels of the W x K windows to estimators that need them; None
    where the data has none.
    """

    predictor: SlotPredictor
    config: GraphConfig
    context: GraphContext
    empty: Tensor
    truth: Callable[[RolloutBlock, bool], dict[str, Tensor] | None] = lambda block, is_factual: None

    def __call__(self, block: RolloutBlock) -> Tensor:
        worlds, sequences = block.history.shape[:2]
        sequence = torch.arange(sequences, device=block.rows.device)
        sample = (block.rows[:, None] * sequences + sequence).flatten()
        context = dataclasses.replace(self.context, sample=sample, step=block.start)
        edge = torch.zeros((), dtype=torch.bool, device=block.rows.device)
        for windows, is_factual in ((block.factual, True), (block.history, False)):
            history = windows.flatten(0, 1)
            graph = estimate_graph(
                self.config,
                self.predictor,
                history,
                is_present(history[:, -1], self.empty),
                context=context,
                truth=self.truth(block, is_factual),
            )
            edge = edge | (graph.adjacency > 0.5)
        from_diverged = edge.unflatten(0, (worlds, sequences)) & block.diverged[:, None, None, :]
        influenced = from_diverged.any(dim=-1)  # (W, K, S)
        frames = block.predicted.shape[1]
        return influenced.repeat(1, -(-frames // sequences), 1)[:, :frames]


@dataclass(frozen=True)
class GivenFramesRule:
    """From given frames on, (W, S): the truth, 0 (a free rollout), or T (the factual world).

    `entered`: not before the slot holds an object. A rollout cannot predict that an object enters
    the scene; the factual entry is closer to the truth.
    """

    frames: Tensor
    entered: bool = False

    def __call__(self, block: RolloutBlock) -> Tensor:
        now = block.start + torch.arange(block.predicted.shape[1], device=self.frames.device)
        diverged = now[None, :, None] >= self.frames[block.rows][:, None]
        return diverged & block.present_by_frame() if self.entered else diverged


def is_present(slots: Tensor, empty: Tensor) -> Tensor:
    """(..., D) -> (...) bool: the slot is not the empty slot."""
    return (slots - empty.to(slots)).square().mean(dim=-1) > PRESENT_DISTANCE
