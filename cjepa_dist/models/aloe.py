"""ALOE: slots of a video and the words of a question -> the answer (arXiv 2012.08508).

    [CLS]                                                    ┐
    slots (R, F, S, D) + modality ──> Linear                 ├─> + positions
    words (R, 32) ──> embedding + role + modality ──> Linear ┘
    ──> pre-norm ReLU blocks, padding is not attended to ──> [CLS] ──> answer (22) and choice (1)

A row is a descriptive question, or a multiple-choice question joined with one of its choices. The
sizes are those of the public re-implementation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.clevrer.vocabulary import ANSWER_IDS, MAX_QUESTION_WORDS, MAX_TEXT_WORDS, WORD_IDS
from cjepa_dist.config.schema import AloeConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.released_weights import find_weights
from cjepa_dist.models.transformer import Block

# `bucket_by_length`: number of buckets; their numbers of rows and of words are multiples of these.
BUCKETS, ROW_MULTIPLE, WORD_MULTIPLE = 4, 8, 4


class Aloe(nn.Module):
    """The VQA model. Called with all rows of a batch, of either kind, at once."""

    def __init__(self, config: AloeConfig) -> None:
        """Raises UserError if the width is not a multiple of the heads."""
        super().__init__()
        self.config = config
        width = config.width
        if width % config.heads:
            raise UserError(f"aloe.heads={config.heads} must divide aloe.width={width}")
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(
            torch.zeros(1, 1 + config.frames * config.slots + MAX_TEXT_WORDS, width)
        )
        # With these the model knows from the start which tokens are of one frame or of one slot.
        if config.factored_position:
            self.frame = nn.Parameter(torch.randn(config.frames, 1, width))
            self.slot = nn.Parameter(torch.randn(1, config.slots, width))
        self.word = nn.Embedding(len(WORD_IDS), config.word_dim)
        self.word_in = nn.Linear(config.word_dim + 4, width)
        self.slot_in = nn.Linear(config.slot_dim + 2, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.mlp_dim,
                config.dropout,
                norm_first=True,
                relu=True,
                drop_attention_output=True,
            )
            for _ in range(config.depth)
        )
        self.answer = nn.Sequential(
            nn.Linear(width, config.head_dim),
            nn.ReLU(),
            nn.Linear(config.head_dim, len(ANSWER_IDS)),
        )
        self.choice = nn.Sequential(
            nn.Linear(width, config.head_dim), nn.ReLU(), nn.Linear(config.head_dim, 1)
        )

    def forward(
        self,
        slots: Tensor,
        tokens: Tensor,
        padding: Tensor,
        is_choice: Tensor,
        row_view: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of both heads for every row: (R, 22) and (R,).

        slots (R, F, S, D), or (U, F, S, D) and `row_view` (R,) int64: which of them a row reads;
        tokens (R, 32) int64; padding (R, 32) bool, True at padding; is_choice (R,) bool, the kind
        of the row.
        """
        summary = self.encode(slots, tokens, padding, is_choice, row_view)
        return self.answer(summary), self.choice(summary)[:, 0]

    def answer_logits(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Answer logits (R, 22) of descriptive questions; slots (R, F, S, D)."""
        is_choice = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        return self(slots, tokens, padding, is_choice)[0]

    def choice_logits(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Logits (R,) that a choice is right, a row a (question, choice); slots (R, F, S, D)."""
        is_choice = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        return self(slots, tokens, padding, is_choice)[1]

    def encode(
        self,
        slots: Tensor,
        tokens: Tensor,
        padding: Tensor,
        is_choice: Tensor,
        row_view: Tensor | None,
    ) -> Tensor:
        """The output of [CLS], (R, W); arguments as in `forward`."""
        expected = (self.config.frames, self.config.slots, self.config.slot_dim)
        if tuple(slots.shape[1:]) != expected:
            frames, count, dim = expected
            raise ValueError(
                f"slots are {tuple(slots.shape)}; this model takes (rows, {frames}, {count}, {dim})"
            )
        vision, text = self.embed_slots(slots), self.embed_words(tokens, is_choice)
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        view = torch.arange(len(tokens), device=tokens.device) if row_view is None else row_view
        sizes = [1, vision.shape[1], tokens.shape[1]]
        cls_position, vision_position, text_position = self.position.split(sizes, dim=1)
        vision = vision + vision_position
        cls = (self.cls + cls_position).expand(len(tokens), -1, -1).to(text.dtype)
        text = torch.cat([cls, text + text_position], dim=1)
        buckets = bucket_by_length(F.pad(padding, (1, 0)))
        texts = [text[rows[:, None], words] for rows, words, _ in buckets]
        # Of the last block only [CLS], the first token, is read: num_queries=1.
        if self.config.shared_vision:
            for block in blocks:
                is_last = block is blocks[-1]
                k, v = block.project_kv(vision)
                for i, (rows, _, unused) in enumerate(buckets):
                    kv = gather_rows(k, view[rows]), gather_rows(v, view[rows])
                    queries = 1 if is_last else None
                    texts[i], _ = block(texts[i], unused, num_queries=queries, prefix_kv=kv)
                if not is_last:
                    vision, _ = block(vision)
        else:
            for i, (rows, _, unused) in enumerate(buckets):
                # Positions are added already, so the order of tokens is free: [CLS], words, slots.
                x = torch.cat([texts[i], gather_rows(vision, view[rows])], dim=1)
                ignored = F.pad(unused, (0, vision.shape[1]))
                for block in blocks[:-1]:
                    x, _ = block(x, ignored)
                texts[i], _ = blocks[-1](x, ignored, num_queries=1)
        summary = torch.cat([text[:, 0] for text in texts])
        if len(buckets) == 1:
            return summary
        row = torch.cat([rows for rows, _, _ in buckets])
        repeated = len(row) - len(tokens)  # the first rows: copies that round up sizes
        return summary[repeated:][row[repeated:].argsort()]

    def embed_slots(self, slots: Tensor) -> Tensor:
        """(U, F, S, D) -> (U, F * S, W).

        The modality of slots is always (0, 1): its second column acts as a bias, its first is
        unused.
        """
        slot, modality = self.slot_in.weight[:, :-2], self.slot_in.weight[:, -1]
        vision = F.linear(slots.flatten(1, 2), slot, self.slot_in.bias + modality)
        if self.config.factored_position:
            vision = vision + (self.frame + self.slot).flatten(0, 1)
        return vision

    def embed_words(self, tokens: Tensor, is_choice: Tensor) -> Tensor:
        """(R, 32) -> (R, 32, W).

        Role: (1, 0) for the question of a choice, (0, 1) for a choice and a descriptive question.
        Modality: (1, 0).
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        role = (is_choice[:, None] & (place < MAX_QUESTION_WORDS)).to(self.word.weight.dtype)
        constant = torch.ones_like(role)
        role_and_modality = torch.stack([role, 1 - role, constant, 0 * constant], dim=-1)
        return self.word_in(torch.cat([self.word(tokens), role_and_modality], dim=-1))

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        heads: int,
        frames: int,
        slots: int,
        dropout: float = 0.1,
    ) -> Aloe:
        """A model with the weights of a released checkpoint; sizes come from their shapes.

        Keys may carry a common prefix. Raises UserError naming what is missing or does not fit.
        """
        prefix, found = find_weights(state_dict, "q_in_proj.weight", "ALOE model")
        depth = len(
            {key.split(".")[2] for key in found if key.startswith("transformer_encoder.layers.")}
        )
        names = reference_names(depth)
        if missing := [theirs for theirs in names.values() if theirs not in found]:
            raise UserError(
                f"the checkpoint lacks {prefix}{missing[0]} ({len(missing)} parameters are missing)"
            )
        model = cls(
            AloeConfig(
                slots=slots,
                slot_dim=found["vision_in_proj.weight"].shape[1] - 2,
                frames=frames,
                width=found["CLS"].shape[-1],
                depth=depth,
                heads=heads,
                mlp_dim=found[names["blocks.0.up.bias"]].shape[0],
                word_dim=found["q_embedding.weight"].shape[1],
                head_dim=found["cls_answer_mlp.0.bias"].shape[0],
                dropout=dropout,
            )
        )
        state = model.state_dict()
        for ours, theirs in names.items():
            if found[theirs].shape != state[ours].shape:
                seen, expected = tuple(found[theirs].shape), tuple(state[ours].shape)
                raise UserError(
                    f"the checkpoint's {prefix}{theirs} is {seen}, not {expected}:"
                    " check frames and slots"
                )
        model.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
        return model

    def to_reference(self) -> dict[str, Tensor]:
        """The weights by the released names, with constants: the inverse of `from_reference`."""
        state = self.state_dict()
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        constants = {
            "text_token": first,
            "vision_token": second,
            "cls_token": second,
            "mc_question_token": first,
            "mc_choice_token": second,
        }
        return constants | {
            theirs: state[ours].clone()
            for ours, theirs in reference_names(self.config.depth).items()
        }


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] along the first axis, as an embedding: its backward is ten times faster on a CPU."""
    return F.embedding(rows, x.flatten(1)).unflatten(1, x.shape[1:])


def bucket_by_length(padding: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows sorted into buckets of similar length, each (rows (r,), words (r, n), padding (r, n)).

    `padding` (R, N) bool, True at padding. More than half of the words of a batch are padding:
    without most of it a step takes half of the work, and the result is the same. The numbers of
    rows and words are rounded up (by copies of the shortest row), because a CPU compiles its matrix
    products for each size. Lengths are values of a tensor, and a GPU would have to be waited for:
    there, in a compiled graph and on the meta device, all rows are one bucket.
    """
    if padding.is_cuda or padding.is_meta or torch.compiler.is_compiling():
        rows, words = (torch.arange(n, device=padding.device) for n in padding.shape)
        return [(rows, words.expand_as(padding), padding)]
    length = (~padding).sum(1)
    order = length.argsort()
    order = torch.cat([order[:1].expand(-len(order) % (BUCKETS * ROW_MULTIPLE)), order])
    buckets = []
    for rows in order.chunk(BUCKETS):
        longest = -(-int(length[rows].max()) // WORD_MULTIPLE) * WORD_MULTIPLE
        words = padding[rows].to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        buckets.append((rows, words, padding[rows].gather(1, words)))
    return buckets


def reference_names(depth: int) -> dict[str, str]:
    """Our parameter names -> those of the public checkpoints."""
    names = {
        "cls": "CLS",
        "position": "transformer_encoder.pos_embedding",
        "word.weight": "q_embedding.weight",
    }
    modules = {"word_in": "q_in_proj", "slot_in": "vision_in_proj"}
    for layer in (0, 2):
        modules |= {
            f"answer.{layer}": f"cls_answer_mlp.{layer}",
            f"choice.{layer}": f"mc_answer_mlp.{layer}",
        }
    for i in range(depth):
        theirs = f"transformer_encoder.layers.{i}"
        names |= {
            f"blocks.{i}.attention.qkv.{part}": f"{theirs}.self_attn.in_proj_{part}"
            for part in ("weight", "bias")
        }
        modules |= {f"blocks.{i}.{ours}": f"{theirs}.{name}" for ours, name in _BLOCK.items()}
    return names | {
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in modules.items()
        for part in ("weight", "bias")
    }


_BLOCK = {
    "attention_norm": "norm1",
    "attention.out": "self_attn.out_proj",
    "norm": "norm2",
    "up": "linear1",
    "down": "linear2",
}
