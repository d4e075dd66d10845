"""The blocks against torch's own layers, and the fast dropout against its definition."""

import pytest
import torch
from torch import nn

from cjepa_dist.models.dropout import apply_dropout
from cjepa_dist.models.transformer import Attention, Block, apply_rotary, rotary_angles


def test_attention_is_multihead_attention():
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(24, 3, batch_first=True), Attention(24, 3, 0.0)
    ours.qkv.weight, ours.qkv.bias, ours.out = (
        theirs.in_proj_weight,
        theirs.in_proj_bias,
        theirs.out_proj,
    )
    x, padding = torch.randn(4, 10, 24), torch.zeros(4, 10, dtype=torch.bool)
    padding[1, 6:] = True
    expected, weights = theirs(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    found, found_weights = ours(x, padding, need_weights=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found_weights, weights, atol=1e-6, rtol=1e-5)
    assert ours(x, padding)[1] is None


def test_fused_and_written_out_agree(monkeypatch):
    """The path that CUDA takes, run on the CPU."""
    attention, x, padding = Attention(24, 3, 0.0), torch.randn(4, 10, 24), torch.rand(4, 10) < 0.3
    expected = attention(x, padding)[0], attention(x)[0]
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    torch.testing.assert_close(
        (attention(x, padding)[0], attention(x)[0]), expected, atol=1e-6, rtol=1e-5
    )


def test_prenorm_relu_block_is_the_encoder_layer():
    theirs = nn.TransformerEncoderLayer(
        24, 3, 48, dropout=0.0, activation="relu", batch_first=True, norm_first=True
    )
    ours = Block(24, 3, 48, 0.0, norm_first=True, relu=True, drop_attention_output=True)
    ours.attention.qkv.weight, ours.attention.qkv.bias = (
        theirs.self_attn.in_proj_weight,
        theirs.self_attn.in_proj_bias,
    )
    ours.attention.out, ours.attention_norm, ours.norm = (
        theirs.self_attn.out_proj,
        theirs.norm1,
        theirs.norm2,
    )
    ours.up, ours.down = theirs.linear1, theirs.linear2
    x = torch.randn(4, 10, 24)
    torch.testing.assert_close(ours(x)[0], theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_that_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1003, 101, requires_grad=True)
    y = apply_dropout(x, p)
    y.sum().backward()
    assert abs((y == 0).float().mean().item() - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(y.mean().item() - 1) < 4 * (p / (1 - p) / x.numel()) ** 0.5
    assert torch.equal(x.grad, y.detach())
    kept = (y > 0).float()
    assert (
        abs(torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))[0, 1])
        < 0.015
    )
    torch.manual_seed(0)
    assert torch.equal(apply_dropout(x, p), y)  # torch's generator decides


def test_dropout_extremes():
    x = torch.ones(10)
    assert (
        apply_dropout(x, 0.0) is x
        and not apply_dropout(x, 1.0).any()
        and apply_dropout(x[:0], 0.5).shape == (0,)
    )


def test_dropout_is_off_in_eval():
    block, x = (
        Block(24, 3, 48, 0.5, norm_first=False, drop_attention_output=True),
        torch.randn(2, 5, 24),
    )
    assert not torch.equal(block(x)[0], block(x)[0])
    block.eval()
    assert torch.equal(block(x)[0], block(x)[0])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 24 is not a multiple of heads 5"):
        Attention(24, 5, 0.0)


def test_rotated_scores_depend_on_the_distance_in_time_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 1, 8).unbind(0)
    scores = [
        apply_rotary(q, rotary_angles(torch.tensor([a]), 8))
        @ apply_rotary(k, rotary_angles(torch.tensor([b]), 8)).transpose(-2, -1)
        for a, b in ((0, 2), (5, 7), (0, 3))
    ]
    torch.testing.assert_close(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], atol=1e-3)
    torch.testing.assert_close(
        apply_rotary(q, rotary_angles(torch.tensor([4]), 8)).norm(dim=-1), q.norm(dim=-1)
    )


def test_memory_is_attended_to_as_any_other_token() -> None:
    """`prefix_kv` of a video gives the same result as the tokens of the video in the sequence."""
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.0).eval()
    seen, asks = torch.randn(3, 6, 32), torch.randn(3, 5, 32)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    whole, weights = attention(
        torch.cat([seen, asks], 1),
        torch.cat([torch.zeros(3, 6, dtype=torch.bool), padding], 1),
        True,
    )
    got, some = attention(asks, padding, True, prefix_kv=attention.project_kv(seen))
    torch.testing.assert_close(got, whole[:, 6:])
    torch.testing.assert_close(some, weights[:, :, 6:])
