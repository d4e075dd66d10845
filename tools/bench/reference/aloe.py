"""ALOE's training step as one would write it from its description: what ours is measured against.

    questions ──> [CLS] + 175 slots + 32 words ──> nn.TransformerEncoder ──> [CLS] ──> answer
    choices   ──> the same, with the video's slots again for each choice     [CLS] ──> choice

One forward for descriptive questions, one for all (question, choice) rows. float32, torch's own
layers and Adam. Parameters have the released names, so `Aloe.to_reference()` loads into it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.clevrer.vocabulary import ANSWER_IDS, MAX_CHOICE_WORDS, MAX_QUESTION_WORDS, WORD_IDS
from cjepa_dist.config.schema import AloeConfig


class ReferenceAloe(nn.Module):
    """The published layout, as SlotFormer's public code has it."""

    def __init__(self, config: AloeConfig) -> None:
        super().__init__()
        width, slots = config.width, config.frames * config.slots
        self.CLS = nn.Parameter(torch.zeros(1, 1, width))
        self.q_embedding = nn.Embedding(len(WORD_IDS), config.word_dim)
        self.q_in_proj = nn.Linear(config.word_dim + 4, width)
        self.vision_in_proj = nn.Linear(config.slot_dim + 2, width)
        layer = nn.TransformerEncoderLayer(
            width,
            config.heads,
            config.mlp_dim,
            config.dropout,
            activation="relu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer_encoder = nn.TransformerEncoder(
            layer, config.depth, enable_nested_tensor=False
        )
        self.transformer_encoder.pos_embedding = nn.Parameter(
            torch.zeros(1, 1 + slots + MAX_QUESTION_WORDS + MAX_CHOICE_WORDS, width)
        )
        self.cls_answer_mlp = nn.Sequential(
            nn.Linear(width, config.head_dim),
            nn.ReLU(),
            nn.Linear(config.head_dim, len(ANSWER_IDS)),
        )
        self.mc_answer_mlp = nn.Sequential(
            nn.Linear(width, config.head_dim), nn.ReLU(), nn.Linear(config.head_dim, 1)
        )
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        self.text_token, self.vision_token = nn.Buffer(first), nn.Buffer(second)
        self.cls_token, self.mc_question_token, self.mc_choice_token = (
            nn.Buffer(second),
            nn.Buffer(first),
            nn.Buffer(second),
        )

    def encode(self, slots: Tensor, tokens: Tensor, padding: Tensor, role: Tensor) -> Tensor:
        """slots (R, F, S, D), tokens and padding (R, 32), role (32, 2) -> [CLS] (R, W)."""
        rows, seen = len(tokens), slots.flatten(1, 2)
        vision = self.vision_in_proj(
            torch.cat([seen, self.vision_token.expand(rows, seen.shape[1], 2)], dim=-1)
        )
        marks = [role.expand(rows, -1, -1), self.text_token.expand(rows, tokens.shape[1], 2)]
        text = self.q_in_proj(torch.cat([self.q_embedding(tokens), *marks], dim=-1))
        x = torch.cat([self.CLS.expand(rows, -1, -1), vision, text], dim=1) + self.get_parameter(
            "transformer_encoder.pos_embedding"
        )
        ignored = F.pad(padding, (x.shape[1] - padding.shape[1], 0))
        return self.transformer_encoder(x, src_key_padding_mask=ignored)[:, 0]

    def answer_logits(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Answer logits (R, 22)."""
        return self.cls_answer_mlp(
            self.encode(slots, tokens, padding, self.cls_token.expand(tokens.shape[1], 2))
        )

    def choice_logits(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Logits (R,), one forward for each question joined with a choice."""
        role = torch.cat(
            [
                self.mc_question_token.expand(MAX_QUESTION_WORDS, 2),
                self.mc_choice_token.expand(MAX_CHOICE_WORDS, 2),
            ]
        )
        return self.mc_answer_mlp(self.encode(slots, tokens, padding, role))[:, 0]


class ReferenceAloeStep:
    """Forward, loss, backward and update, again and again on one batch of questions."""

    def __init__(self, config: AloeConfig, batch: dict[str, Tensor]) -> None:
        slots, choice = (
            batch["slots"][batch["row_view"]],
            batch["is_choice"],
        )  # every row has slots of its own
        self.asked, self.chosen = (
            {
                "slots": slots[rows],
                **{name: batch[name][rows] for name in ("tokens", "padding", "label")},
            }
            for rows in (~choice, choice)
        )
        self.model = ReferenceAloe(config).to(slots.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-3, foreach=False, fused=False
        )

    def loss(self) -> Tensor:
        """Cross-entropy of descriptive questions + binary cross-entropy of choices."""
        asked, chosen = (dict(rows) for rows in (self.asked, self.chosen))
        answer, right = asked.pop("label"), chosen.pop("label")
        answers, choices = self.model.answer_logits(**asked), self.model.choice_logits(**chosen)
        return F.cross_entropy(answers, answer) + F.binary_cross_entropy_with_logits(
            choices, right.float()
        )

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
