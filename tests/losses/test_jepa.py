"""The losses of C-JEPA and of ALOE: as released, and sums that add up over parts of a batch."""

import pytest
import torch
import torch.nn.functional as F

from cjepa_dist.losses.jepa import future_loss, history_loss
from cjepa_dist.losses.vqa import answer_loss, choice_loss
from tests.fixtures import parity_tensors


@pytest.mark.parametrize("name", ["small", "long"])
def test_released_losses(name):
    arrays, _ = parity_tensors(f"predictor_{name}")
    z, x, frames = arrays["forward_out"], arrays["x"], int(arrays["history_frames"])
    hidden = torch.zeros(x.shape[0], x.shape[2], dtype=torch.bool)
    hidden[:, arrays["mask_indices"]] = True
    assert abs(future_loss(z, x, frames).item() - float(arrays["loss_future"])) < 1e-5
    assert (
        abs(history_loss(z, x, hidden, frames).item() - float(arrays["loss_masked_history"])) < 1e-5
    )


def test_history_loss_is_the_mean_over_hidden_tokens():
    z, x, hidden = torch.randn(6, 4, 5, 8), torch.randn(6, 4, 5, 8), torch.rand(6, 5) < 0.4
    expected = (z - x)[:, :3][hidden[:, None].expand(-1, 3, -1)].square().mean()
    torch.testing.assert_close(history_loss(z, x, hidden, 3), expected)
    parts = [
        history_loss(z[i : i + 2], x[i : i + 2], hidden[i : i + 2], 3, count=hidden.sum())
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts), expected)


def test_nothing_hidden_is_zero_with_zero_gradient():
    z, x = torch.randn(2, 4, 5, 8, requires_grad=True), torch.randn(2, 4, 5, 8)
    loss = history_loss(z, x, torch.zeros(2, 5, dtype=torch.bool), 3)
    loss.backward()
    assert loss == 0 and not z.grad.any()


def test_visible_errors_do_not_count_even_if_infinite():
    z, x = torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, 3)
    z[0, :, 1] = float("inf")
    assert history_loss(z, x, torch.tensor([[True, False]]), 3) == 0


def test_losses_are_float32_for_bf16():
    z, x = torch.randn(2, 4, 5, 8).bfloat16(), torch.randn(2, 4, 5, 8)
    assert (
        future_loss(z, x, 3).dtype
        == history_loss(z, x, torch.ones(2, 5, dtype=torch.bool), 3).dtype
        == torch.float32
    )


def test_vqa_losses_add_up_over_parts_and_ignore_the_other_kind():
    answers, choices = torch.randn(9, 22), torch.randn(9)
    answer_label = torch.tensor([3, -1, 0, 21, -1, -1, 7, -1, -1])
    choice_label = torch.where(answer_label < 0, torch.arange(9) % 2, -1)
    own = answer_label >= 0
    torch.testing.assert_close(
        answer_loss(answers, answer_label, 4), F.cross_entropy(answers[own], answer_label[own])
    )
    expected = F.binary_cross_entropy_with_logits(choices[~own], choice_label[~own].float())
    torch.testing.assert_close(choice_loss(choices, choice_label, 5.0), expected)
    torch.testing.assert_close(
        sum(answer_loss(answers[i], answer_label[i], 4) for i in (slice(0, 2), slice(2, 9))),
        answer_loss(answers, answer_label, 4),
    )
    torch.testing.assert_close(
        sum(choice_loss(choices[i], choice_label[i], 5) for i in (slice(0, 2), slice(2, 9))),
        expected,
    )


def test_vqa_losses_of_no_rows_are_zero_and_differentiable():
    logits = torch.randn(3, 22, requires_grad=True)
    none = torch.full((3,), -1)
    loss = answer_loss(logits, none, 0) + choice_loss(logits[:, 0], none, 0)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
