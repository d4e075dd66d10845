"""Roll out a batch of videos: the predicted future, and worlds without an object.

    RolloutInput per video ──> slots (V, T, S, D) ──predictor.rollout──> observed and future frames
                               removed slots ──rollout_without_object──> worlds.npz of each video

Modes: future (no worlds), counterfactual (a divergence rule says what changes), free (everything is
predicted), factual (nothing changes). `cjepa_dist.rollout` reads and writes the videos.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import counterfactual_rollout
from cjepa_dist.causal.divergence import (
    TAU_FACTOR,
    DivergenceRule,
    GivenFramesRule,
    GraphRule,
    PairedRule,
)
from cjepa_dist.causal.graph import GraphContext
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.models.predictor import SlotPredictor

# Slots (T, S, D) and the arrays of worlds.npz (None in mode "future"), for one video.
RolloutOutput = tuple[np.ndarray, dict[str, np.ndarray] | None]


@dataclass
class RolloutInput:
    """A video to roll out."""

    slots: np.ndarray  # (T, S, D) float32
    removed: list[int]  # slots; a world without each of them
    diverged: np.ndarray | None = None  # (n, S) of these worlds as simulated, for divergence=oracle


class RolloutPredictor:
    """Rolls out batches of videos with a predictor, on its device."""

    def __init__(
        self,
        predictor: SlotPredictor,
        context: GraphContext,
        empty: Tensor | None,
        *,
        frameskip: int,
        future_frames: int,
        mode: str,
        divergence: str,
        graph: GraphConfig,
        bf16: bool,
    ) -> None:
        """`empty` (D,) is needed by every mode but "future"; `divergence` and `graph` by one."""
        self.predictor, self.context, self.empty = predictor.eval(), context, empty
        self.frameskip, self.future_frames = frameskip, future_frames
        self.mode, self.divergence, self.graph, self.bf16 = mode, divergence, graph, bf16
        self.device = context.sigma2.device

    @torch.inference_mode()
    def __call__(self, videos: list[RolloutInput]) -> list[RolloutOutput]:
        frames = torch.from_numpy(np.stack([video.slots for video in videos])).to(self.device)
        future = self.predictor.rollout(frames, self.future_frames, self.frameskip)
        slots = torch.cat([frames, future], dim=1)
        if self.mode == "future":
            return [(factual, None) for factual in slots.cpu().numpy()]
        # Videos without a removed object need no world, but the batch must not be empty.
        used = [i for i, video in enumerate(videos) if video.removed] or [0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            worlds, diverged = self.predict_worlds(slots[used], [videos[i] for i in used])
        counts = [len(video.removed) for video in videos]
        outputs: list[RolloutOutput] = []
        for video, factual, video_worlds, video_diverged in zip(
            videos, slots.cpu().numpy(), worlds.cpu().split(counts), diverged.cpu().split(counts)
        ):
            arrays = {
                "removed": np.array(video.removed, np.int8),
                "slots": video_worlds.numpy(),
                "diverged": video_diverged.numpy().astype(np.int16),
            }
            outputs.append((factual, arrays))
        return outputs

    def predict_worlds(self, slots: Tensor, videos: list[RolloutInput]) -> tuple[Tensor, Tensor]:
        """Worlds (W, T, S, D) and divergence (W, S) of all videos in order; slots (V, T, S, D)."""
        pairs = [(v, slot) for v, video in enumerate(videos) for slot in video.removed]
        indices = torch.tensor(pairs, dtype=torch.long, device=self.device).reshape(-1, 2)
        assert self.empty is not None
        expected = slots
        if self.mode == "counterfactual" and self.divergence == "paired":
            expected = counterfactual_rollout.predict_factual(self.predictor, slots, self.frameskip)
        return counterfactual_rollout.rollout_without_object(
            self.predictor,
            slots,
            expected,
            indices[:, 0],
            indices[:, 1],
            self.divergence_rule(slots, videos),
            frameskip=self.frameskip,
            empty=self.empty,
        )

    def divergence_rule(self, slots: Tensor, videos: list[RolloutInput]) -> DivergenceRule:
        worlds = sum(len(video.removed) for video in videos)
        if self.mode in ("free", "factual"):
            frame = 0 if self.mode == "free" else slots.shape[1]
            frames = torch.full((worlds, slots.shape[2]), frame, device=self.device)
            return GivenFramesRule(frames)
        if self.divergence == "oracle":
            simulated = np.concatenate([video.diverged for video in videos])
            return GivenFramesRule(torch.from_numpy(simulated).to(self.device), entered=True)
        if self.divergence == "paired":
            tau = self.graph.tau or TAU_FACTOR * self.context.tau
            return PairedRule(self.context.sigma2, torch.as_tensor(tau, device=self.device))
        graph = dataclasses.replace(self.graph, estimator=self.divergence)
        assert self.empty is not None
        return GraphRule(self.predictor, graph, self.context, self.empty)
