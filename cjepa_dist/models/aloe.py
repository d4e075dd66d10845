"""ALOE: slots and the words of a question -> the answer (arXiv 2012.08508; sizes of the public re-implementation, `spec/aloe.md`).

    [CLS]                                        ┐
    slots (R, F, S, D) + modality ──> Linear     ├─> + positions ──> pre-norm ReLU blocks ──> [CLS] ──> answer (22) and choice (1)
    words (R, 32) ──> embedding + role + modality ──> Linear ┘         padding is not attended to

A row is a descriptive question, or a multiple-choice question joined with one of its choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cjepa_dist.config.schema import AloeConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.transformer import Block

WORDS, ANSWERS = 82, 22  # CLEVRER's vocabulary with PAD
QUESTION_WORDS, CHOICE_WORDS = 20, 12
PARTS, ROWS, LENGTHS = (
    4,
    8,
    4,
)  # rows of a batch by length: how many parts, multiples of rows and of words, see `by_length`


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
            torch.zeros(1, 1 + config.frames * config.slots + QUESTION_WORDS + CHOICE_WORDS, width)
        )
        if config.factored_position:  # "same frame" and "same slot" are then there from the start, and need not be learned pair by pair
            self.frame = nn.Parameter(torch.randn(config.frames, 1, width))
            self.slot = nn.Parameter(torch.randn(1, config.slots, width))
        self.word = nn.Embedding(WORDS, config.word_dim)
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
            nn.Linear(width, config.head_dim), nn.ReLU(), nn.Linear(config.head_dim, ANSWERS)
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

        slots (R, F, S, D), or (U, F, S, D) with `row_view` (R,) int64 saying which of them a row reads;
        tokens (R, 32) int64; padding (R, 32) bool, True at padding; is_choice (R,) bool, the kind of the row.
        """
        summary = self.encode(slots, tokens, padding, is_choice, row_view)
        return self.answer(summary), self.choice(summary)[:, 0]

    def descriptive(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Answer logits (R, 22) of descriptive questions; slots (R, F, S, D)."""
        is_choice = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        return self(slots, tokens, padding, is_choice)[0]

    def choices(self, slots: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Logits (R,) that a choice is right, one row a (question, choice); slots (R, F, S, D)."""
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
        """What [CLS] has gathered, (R, W); arguments as in `forward`."""
        seen, expected = (
            tuple(slots.shape[1:]),
            (self.config.frames, self.config.slots, self.config.slot_dim),
        )
        if seen != expected:
            raise ValueError(
                f"slots are (rows, {', '.join(map(str, seen))}); this model takes (rows, {', '.join(map(str, expected))})"
            )
        vision, text = self.see(slots), self.read(tokens, is_choice)
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        row = torch.arange(len(tokens), device=tokens.device) if row_view is None else row_view
        at_cls, at_vision, at_text = self.position.split(
            [1, vision.shape[1], tokens.shape[1]], dim=1
        )
        vision, x = (
            vision + at_vision,
            torch.cat(
                [(self.cls + at_cls).expand(len(tokens), -1, -1).to(text.dtype), text + at_text],
                dim=1,
            ),
        )
        parts = bucket_by_length(F.pad(padding, (1, 0)))
        texts = [x[rows[:, None], words] for rows, words, _ in parts]
        if self.config.shared_vision:
            for block in blocks:
                k, v = block.keys(vision)
                for i, (rows, _, unused) in enumerate(parts):
                    memory = gather_rows(k, row[rows]), gather_rows(v, row[rows])
                    texts[i], _ = block(
                        texts[i], unused, first=1 if block is blocks[-1] else None, memory=memory
                    )
                if block is not blocks[-1]:
                    vision, _ = block(vision)
        else:
            for i, (rows, _, unused) in enumerate(
                parts
            ):  # the order of tokens says nothing: [CLS], words, slots
                x, ignored = (
                    torch.cat([texts[i], gather_rows(vision, row[rows])], dim=1),
                    F.pad(unused, (0, vision.shape[1])),
                )
                for block in blocks[:-1]:
                    x, _ = block(x, ignored)
                texts[i], _ = blocks[-1](
                    x, ignored, first=1
                )  # nothing else of the last block is read
        summary, of = (
            torch.cat([text[:, 0] for text in texts]),
            torch.cat([rows for rows, _, _ in parts]),
        )
        again = len(of) - len(tokens)  # rows that only round sizes up
        return summary if len(parts) == 1 else summary[again:][of[again:].argsort()]

    def see(self, slots: Tensor) -> Tensor:
        """(U, F, S, D) -> (U, F * S, W). The modality of slots is (0, 1) always, so its second column is a bias and the first is unused."""
        slot, modality = self.slot_in.weight[:, :-2], self.slot_in.weight[:, -1]
        vision = F.linear(slots.flatten(1, 2), slot, self.slot_in.bias + modality)
        return (
            vision + (self.frame + self.slot).flatten(0, 1)
            if self.config.factored_position
            else vision
        )

    def read(self, tokens: Tensor, is_choice: Tensor) -> Tensor:
        """(R, 32) -> (R, 32, W). Role: the question of a choice (1, 0), a choice or a descriptive question (0, 1); modality (1, 0)."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        asks = (is_choice[:, None] & (place < QUESTION_WORDS)).to(self.word.weight.dtype)
        constant = torch.ones_like(asks)
        marks = torch.stack([asks, 1 - asks, constant, 0 * constant], dim=-1)
        return self.word_in(torch.cat([self.word(tokens), marks], dim=-1))

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
        """A released checkpoint's weights; sizes are read off the shapes. Keys may carry a common prefix.

        Raises UserError naming what is missing or does not fit.
        """
        prefix = next(
            (
                key.removesuffix("q_in_proj.weight")
                for key in state_dict
                if key.endswith("q_in_proj.weight")
            ),
            None,
        )
        if prefix is None:
            raise UserError("this is no released ALOE model: it has no parameter q_in_proj.weight")
        found = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
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
                    f"the checkpoint's {prefix}{theirs} is {seen}, not {expected}: check frames and slots"
                )
        model.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
        return model

    def to_reference(self) -> dict[str, Tensor]:
        """The weights by the released names, the constant marks included: the inverse of `from_reference`."""
        state = self.state_dict()
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        marks = {
            "text_token": first,
            "vision_token": second,
            "cls_token": second,
            "mc_question_token": first,
            "mc_choice_token": second,
        }
        return marks | {
            theirs: state[ours].clone()
            for ours, theirs in reference_names(self.config.depth).items()
        }


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] along the first axis; as an embedding, whose backward sums in whole rows (ten times faster on a CPU)."""
    return F.embedding(rows, x.flatten(1)).unflatten(1, x.shape[1:])


def bucket_by_length(padding: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows of words sorted into parts of like length, for padding (R, N) bool, True at padding: (rows (r,), words (r, n), padding (r, n)).

    More than half of the words of a batch are padding, and positions are added before: so what is left is the same, for half of the work.
    Sizes are rounded up, the first row standing there once more: a CPU compiles its matrix products for each size, at half of a step's
    time if every step had others. It reads the lengths, which on a GPU would wait for it: there, where a graph is compiled and on the
    meta device, all rows are one part.
    """
    if padding.is_cuda or padding.is_meta or torch.compiler.is_compiling():
        rows, words = (torch.arange(n, device=padding.device) for n in padding.shape)
        return [(rows, words.expand_as(padding), padding)]
    length = (~padding).sum(1)
    order = length.argsort()
    order = torch.cat([order[:1].expand(-len(order) % (PARTS * ROWS)), order])
    parts = []
    for rows in order.chunk(PARTS):
        longest = -(-int(length[rows].max()) // LENGTHS) * LENGTHS
        words = padding[rows].to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        parts.append((rows, words, padding[rows].gather(1, words)))
    return parts


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
