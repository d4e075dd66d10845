"""C-JEPA: slots of the past, some objects hidden -> slots of all frames, past and future.

    history (B, T_h, S, D), hidden (B, S)
        visible token  slot                               + time
        query          mask token + Linear(slot at t = 0) + time
                       (hidden slots at t >= 1, and every slot of the future)
    ──> transformer over all T_total * S tokens, each token sees all others
    ──> LayerNorm ──> Linear ──> z (B, T_total, S, D)

Source: arXiv 2602.11389. There is no embedding of the slot number: the content at t = 0, which is
always visible, says which object a slot is. The mask is an argument and shapes are static, so no
control flow depends on the value of a tensor. The end of this file translates the parameter names
of released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from cjepa_dist.config.schema import PredictorConfig
from cjepa_dist.errors import UserError
from cjepa_dist.models.released_weights import find_weights
from cjepa_dist.models.transformer import Block, CosSin, apply_rotary, rotary_angles


class SlotPredictor(nn.Module):
    """The world model. `PredictorConfig` describes its options.

    The defaults are the released layout.
    """

    def __init__(self, config: PredictorConfig) -> None:
        """Raises UserError if the width is not a multiple of the heads."""
        super().__init__()
        self.config = config
        slot_dim, width = config.slot_dim, config.width or config.slot_dim
        if width % config.heads:
            name = "width" if config.width else "slot_dim"
            raise UserError(f"predictor.heads={config.heads} must divide predictor.{name}={width}")
        if config.rotary and width // config.heads % 2:
            raise UserError(
                "predictor.rotary rotates pairs of dimensions: the width of a head,"
                f" {width} / {config.heads}, must be even"
            )
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.time = nn.Parameter(
            torch.randn(1, config.history_frames + config.pred_frames, 1, width)
        )
        self.slot_in = nn.Linear(slot_dim, width) if config.width else nn.Identity()
        self.first_anchor = nn.Linear(slot_dim, width)
        self.last_anchor = nn.Linear(slot_dim, width) if config.last_anchor else None
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_dim, config.dropout, norm_first=config.norm_first)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, slot_dim)
        if config.predict_change:  # so an untrained model predicts that nothing changes
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self,
        history: Tensor,
        hidden: Tensor,
        *,
        need_attention: bool | Literal["last"] = False,
        future_only: bool = False,
        closed: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Predict every slot of every frame, past frames included: z (B, T + T_p, S, D).

        history (B, T, S, D), T <= T_h; hidden (B, S) bool: slots of which only t = 0 is visible.
        `need_attention`: also the attention weights of each layer ("last": only the last one),
        (B, heads, N, N) with N = (T + T_p) * S tokens, frame-major. `future_only`: z
        (B, T_p, S, D), and the weights of the last layer have rows for future tokens only. The
        numbers are the same for less work: the last layer skips the other tokens. `closed` (B, S)
        bool: slots that no token attends to, in any layer, so that nothing of them reaches the
        other slots; their own predictions mean nothing.
        """
        last_visible = torch.where(hidden[..., None], history[:, 0], history[:, -1])
        tokens = self.embed(history, hidden, last_visible)
        batch, frames, slots, width = tokens.shape
        own_slot = self.config.own_slot_only  # then a sequence is one slot: (B * S, T + T_p, W)
        x = tokens.transpose(1, 2).flatten(0, 1) if own_slot else tokens.flatten(1, 2)
        tokens_per_frame = 1 if own_slot else slots
        rotary = self.rotary_embedding(frames, tokens_per_frame, x.device)
        ignored = None if closed is None or own_slot else closed.repeat(1, frames)
        attention = []
        for block in self.blocks:
            last = block is self.blocks[-1]
            wanted = need_attention is True or (last and need_attention == "last")
            if last and future_only:
                frames = self.config.pred_frames
                count = frames * tokens_per_frame
                x, weights = apply_to_last_tokens(
                    cast(Block, block), x, count, rotary, wanted, ignored
                )
            else:
                x, weights = block(x, ignored, need_weights=wanted, rotary=rotary)
            if weights is not None:
                attention.append(
                    expand_to_all_slots(weights, batch, slots) if own_slot else weights
                )
        if own_slot:
            x = x.view(batch, slots, frames, width).transpose(1, 2)
        else:
            x = x.view(batch, frames, slots, width)
        z = self.head(self.norm(x))
        if self.config.predict_change:
            z = last_visible[:, None] + z
        return (z, attention) if need_attention else z

    def rotary_embedding(
        self, frames: int, tokens_per_frame: int, device: torch.device
    ) -> CosSin | None:
        """Rotary embedding of the frame number for frame-major tokens; None if it is off."""
        if not self.config.rotary:
            return None
        width = self.config.width or self.config.slot_dim
        position = torch.arange(frames, device=device).repeat_interleave(tokens_per_frame)
        return rotary_angles(position, width // self.config.heads)

    def embed(self, history: Tensor, hidden: Tensor, last_visible: Tensor) -> Tensor:
        """history (B, T, S, D), hidden (B, S), last_visible (B, S, D) -> (B, T + T_p, S, W)."""
        length, future = history.shape[1], self.config.pred_frames
        if not 1 <= length <= self.config.history_frames:
            raise ValueError(
                f"history has {length} frames; this predictor takes 1 to"
                f" {self.config.history_frames}"
            )
        anchor = self.first_anchor(history[:, :1])  # (B, 1, S, W)
        query = self.mask_token + anchor
        visible = self.slot_in(history)
        if self.config.anchor_all:
            visible = visible + anchor
        # The slot at t = 0 is always visible.
        past = torch.where(hidden[:, None, :, None], query, visible[:, 1:])
        if self.last_anchor is not None:
            query = query + self.last_anchor(last_visible)[:, None]
        tokens = torch.cat([visible[:, :1], past, query.expand(-1, future, -1, -1)], dim=1)
        # Time counts back from the end: the present has one embedding, however long the history.
        return tokens + self.time[:, -(length + future) :]

    def predict(self, history: Tensor) -> Tensor:
        """The next T_p frames, nothing hidden: (B, T, S, D), T <= T_h -> (B, T_p, S, D)."""
        batch, _, slots, _ = history.shape
        hidden = torch.zeros(batch, slots, dtype=torch.bool, device=history.device)
        z: Tensor = self(history, hidden, future_only=True)
        return z

    def rollout(self, frames: Tensor, count: int, frameskip: int) -> Tensor:
        """The next `count` video frames: (V, T, S, D) -> (V, count, S, D).

        The model sees every `frameskip`-th video frame, so a video is `frameskip` interleaved
        sequences, all of them in one batch: frame T + i is position i // frameskip of sequence
        i % frameskip. Raises UserError if the video is shorter than the history.
        """
        videos, length, slots, slot_dim = frames.shape
        needed, future = self.config.history_frames * frameskip, self.config.pred_frames
        if length < needed:
            raise UserError(
                f"a rollout needs history_frames x frameskip = {needed} frames;"
                f" the video has {length}"
            )
        history = frames[:, length - needed :].unflatten(1, (-1, frameskip))
        sequence = history.transpose(1, 2).flatten(0, 1)  # (V * frameskip, T_h, S, D)
        steps = -(-count // frameskip)
        for _ in range(-(-steps // future)):
            following = self.predict(sequence[:, -self.config.history_frames :])
            sequence = torch.cat([sequence, following.to(sequence.dtype)], dim=1)
        rolled = sequence[:, self.config.history_frames :][:, :steps]
        rolled = rolled.unflatten(0, (videos, frameskip)).transpose(1, 2)
        return rolled.reshape(videos, steps * frameskip, slots, slot_dim)[:, :count]

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        history_frames: int,
        pred_frames: int,
        heads: int,
        slots: int = 7,
        dropout: float = 0.1,
    ) -> SlotPredictor:
        """A model with the weights of a released checkpoint.

        Sizes come from the shapes of the weights; heads, slots and dropout cannot be seen in them.
        Keys may carry a common prefix (the predictor inside a larger model). Raises UserError
        naming what is missing or does not fit.
        """
        prefix, found = find_weights(state_dict, "time_pos_embed", "C-JEPA predictor")
        depth = len({key.split(".")[2] for key in found if key.startswith("transformer.layers.")})
        names = reference_names(depth)
        if missing := [theirs for theirs in names.values() if theirs not in found]:
            raise UserError(
                f"the checkpoint lacks {prefix}{missing[0]} ({len(missing)} parameters are missing)"
            )
        if (trained := found["time_pos_embed"].shape[1]) != history_frames + pred_frames:
            raise UserError(
                f"the checkpoint has {trained} time embeddings, not history_frames + pred_frames ="
                f" {history_frames + pred_frames}"
            )
        model = cls(
            PredictorConfig(
                slots=slots,
                slot_dim=found["mask_token"].shape[-1],
                history_frames=history_frames,
                pred_frames=pred_frames,
                depth=depth,
                heads=heads,
                mlp_dim=found[names["blocks.0.up.bias"]].shape[0],
                dropout=dropout,
            )
        )
        model.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
        return model

    def to_reference(self) -> dict[str, Tensor]:
        """The weights by the released names: the inverse of `from_reference`.

        Raises UserError if an option is set that the released layout does not have.
        """
        config, released = self.config, PredictorConfig()
        options = (
            "width",
            "norm_first",
            "predict_change",
            "last_anchor",
            "anchor_all",
            "rotary",
            "own_slot_only",
        )
        if added := [name for name in options if getattr(config, name) != getattr(released, name)]:
            raise UserError(
                f"the released layout has no {', '.join(added)}: a predictor trained with it cannot"
                " be exported"
            )
        state = self.state_dict()
        return {
            theirs: state[ours].clone() for ours, theirs in reference_names(config.depth).items()
        }


def apply_to_last_tokens(
    block: Block,
    x: Tensor,
    count: int,
    rotary: CosSin | None,
    need_weights: bool,
    ignored: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A layer's output for the last `count` of the tokens x (B, N, W): (B, count, W).

    Also its attention weights (B, heads, count, N) if they are needed. `ignored` (B, N) bool: keys
    that no token attends to; then the layer is computed for all tokens.
    """
    if ignored is not None:
        x, weights = block(x, ignored, need_weights=need_weights, rotary=rotary)
        return x[:, -count:], None if weights is None else weights[:, :, -count:]
    sizes = [x.shape[1] - count, count]
    past, future = x.split(sizes, dim=1)
    k, v = block.project_kv(past)
    if rotary is not None:
        cos, sin = (part.split(sizes) for part in rotary)
        k, rotary = apply_rotary(k, (cos[0], sin[0])), (cos[1], sin[1])
    return block(future, need_weights=need_weights, prefix_kv=(k, v), rotary=rotary)


def expand_to_all_slots(weights: Tensor, batch: int, slots: int) -> Tensor:
    """Attention within slots (B * S, heads, Q, T) -> over all slots (B, heads, Q * S, T * S)."""
    _, heads, queries, frames = weights.shape
    same_slot = torch.eye(slots, dtype=weights.dtype, device=weights.device)
    within = weights.view(batch, slots, heads, queries, frames)
    full = torch.einsum("bshtu,sr->bhtsur", within, same_slot)
    return full.reshape(batch, heads, queries * slots, frames * slots)


def reference_names(depth: int) -> dict[str, str]:
    """Our parameter names -> those of the released C-JEPA checkpoints."""
    names = {"mask_token": "mask_token", "time": "time_pos_embed"}
    modules = {"first_anchor": "id_projector", "norm": "transformer.norm", "head": "to_out"}
    for i in range(depth):
        theirs = f"transformer.layers.{i}"
        names |= {
            f"blocks.{i}.attention.qkv.{part}": f"{theirs}.0.in_proj_{part}"
            for part in ("weight", "bias")
        }
        modules |= {f"blocks.{i}.{ours}": f"{theirs}.{name}" for ours, name in _BLOCK.items()}
    return names | {
        f"{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in modules.items()
        for part in ("weight", "bias")
    }


_BLOCK = {"attention.out": "0.out_proj", "norm": "1.0", "up": "1.1", "down": "1.4"}
