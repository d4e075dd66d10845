"""The published training step as one would write it from its description, inefficiencies included.

    history ──> tokens ──> [nn.MultiheadAttention with averaged weights + MLP] x depth ──> z
    loss = masked history + future
           (+ 0.2 invariance + 0.1 sufficiency: four more forwards, Python loops over slots, syncs)

What ours is measured against. float32, unfused attention that stores its weights and averages them
over heads, dropout as published, AdamW parameter by parameter. Parameters have the released names,
so `SlotPredictor.to_reference()` loads into it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.config.schema import PredictorConfig

THRESHOLD, INVARIANCE, SUFFICIENCY = 0.15, 0.2, 0.1


class ReferencePredictor(nn.Module):
    """The released layout: attention without a norm before it, then LayerNorm and MLP."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        width, frames = config.slot_dim, config.history_frames + config.pred_frames
        self.history_frames, self.pred_frames = config.history_frames, config.pred_frames
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.time_pos_embed = nn.Parameter(torch.randn(1, frames, 1, width))
        self.id_projector = nn.Linear(width, width)
        layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.MultiheadAttention(
                        width, config.heads, dropout=config.dropout, batch_first=True
                    ),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, config.mlp_dim),
                        nn.GELU(),
                        nn.Dropout(config.dropout),
                        nn.Linear(config.mlp_dim, width),
                        nn.Dropout(config.dropout),
                    ),
                ]
            )
            for _ in range(config.depth)
        )
        self.transformer = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(width)})
        self.to_out = nn.Linear(width, width)

    def forward(self, history: Tensor, masked: list[int]) -> tuple[Tensor, Tensor]:
        """history (B, T_h, S, D), hidden slots -> z (B, T_h + T_p, S, D), attention (B, N, N).

        The attention is the last layer's, averaged over heads.
        """
        query = self.mask_token[:, None] + self.id_projector(history[:, :1])
        tokens = torch.cat([history, query.expand(-1, self.pred_frames, -1, -1)], dim=1)
        for slot in masked:
            tokens[:, 1 : self.history_frames, slot] = query[:, :, slot]
        shape = tokens.shape
        x = (tokens + self.time_pos_embed).flatten(1, 2)
        for attention, mlp in self.transformer["layers"]:  # type: ignore[attr-defined]
            mixed, weights = attention(x, x, x, need_weights=True)
            x = x + mixed
            x = x + mlp(x)
        return self.to_out(self.transformer["norm"](x)).view(shape), weights


def masked_slots(slots: int, count: int) -> list[int]:
    """The released code's hidden slots: each step draws them from one seed, so always the same."""
    return np.random.RandomState(42).permutation(slots)[:count].tolist()


def prediction_loss(model: ReferencePredictor, x: Tensor, masked: list[int]) -> Tensor:
    """Mean squared error of the masked slots' history + of all future slots, for x (B, T, S, D)."""
    frames = model.history_frames
    z, _ = model(x[:, :frames], masked)
    return F.mse_loss(z[:, :frames, masked], x[:, :frames, masked]) + F.mse_loss(
        z[:, frames:], x[:, frames:]
    )


def causal_loss(
    model: ReferencePredictor, x: Tensor, masked: list[int], i: int, k: int
) -> tuple[Tensor, Tensor]:
    """Invariance to hiding slot i, and sufficiency of slot k's neighbours.

    Each with its own passes and loops over slots.
    """
    frames, slots = model.history_frames, x.shape[2]
    history, zero = x[:, :frames], x.new_zeros(())
    with torch.no_grad():
        _, weights = model(history, masked)
        graph = weights.view(len(x), -1, slots, weights.shape[-1] // slots, slots)[:, frames].mean(
            dim=2
        )
        clean, _ = model(history, masked)
    far = [
        j
        for j in range(slots)
        if j != i and j not in masked and graph[:, j, i].mean().item() < THRESHOLD
    ]
    invariance = zero
    if far:
        z, _ = model(history, [*masked, i])
        invariance = sum(
            (F.mse_loss(z[:, frames:, j], clean[:, frames:, j]) for j in far), zero
        ) / len(far)
    unseen = [j for j in range(slots) if j != k and graph[:, k, j].mean().item() < THRESHOLD]
    sufficiency = zero
    if unseen:
        z, _ = model(history, unseen)
        sufficiency = F.mse_loss(z[:, frames:, k], x[:, frames:, k])
    return invariance, sufficiency


class ReferenceStep:
    """Forward, loss, backward and update, again and again on x (B, T, S, D)."""

    def __init__(self, config: PredictorConfig, x: Tensor, *, masked: int, causal: bool) -> None:
        self.model, self.x, self.causal = ReferencePredictor(config).to(x.device), x, causal
        self.masked = min(masked, config.slots - 1)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=5e-4, weight_decay=0.01, foreach=False, fused=False
        )

    def __call__(self) -> None:
        slots = self.x.shape[2]
        masked = masked_slots(slots, self.masked)
        self.optimizer.zero_grad()
        loss = prediction_loss(self.model, self.x, masked)
        if self.causal:
            visible = [j for j in range(slots) if j not in masked]
            i, k = (int(np.random.choice(visible)) for _ in range(2))
            invariance, sufficiency = causal_loss(self.model, self.x, masked, i, k)
            loss = loss + INVARIANCE * invariance + SUFFICIENCY * sufficiency
        loss.backward()
        self.optimizer.step()
