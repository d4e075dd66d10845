"""The EMA of the weights, checksums of replicas, and sharded steps that are reverted."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cjepa_dist.optim.ema import WeightEma
from cjepa_dist.resilience.nonfinite import update_if_finite, update_then_revert
from cjepa_dist.resilience.replica_check import tensor_checksum
from cjepa_dist.runtime.collectives import full_tensor


def test_the_mean_follows_the_weights_and_is_swapped_with_them_bit_for_bit():
    model = nn.Linear(3, 2)
    ema, expected = (
        WeightEma(dict(model.named_parameters()), 0.9),
        model.weight.detach().clone(),
    )
    for step in range(50):
        with torch.no_grad():
            model.weight += 0.1 * torch.randn(2, 3)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.mean["weight"], expected)
    weight, mean = model.weight.detach().clone(), ema.mean["weight"].clone()
    with pytest.raises(RuntimeError), ema.swapped():
        assert torch.equal(model.weight, mean) and torch.equal(ema.mean["weight"], weight)
        raise RuntimeError
    assert torch.equal(model.weight, weight) and torch.equal(ema.mean["weight"], mean)


def test_any_single_change_alters_the_checksum():
    tensors = [
        torch.randn(3, 4),
        torch.randn(5).bfloat16(),
        torch.arange(6),
        torch.tensor(True),
        torch.randn(4, 4).T,
    ]
    before = tensor_checksum(tensors)
    assert torch.equal(before, tensor_checksum([value.clone() for value in tensors]))
    for index, value in enumerate(tensors):
        changed = [other.clone() for other in tensors]
        one = (
            changed[index].view(-1)
            if value.is_contiguous()
            else changed[index].contiguous().view(-1)
        )
        one[0] = ~one[0] if value.dtype == torch.bool else one[0] + 1
        if not value.is_contiguous():
            changed[index] = one.view(value.shape)
        assert not torch.equal(before, tensor_checksum(changed)), index
    assert not torch.equal(before, tensor_checksum([tensors[0].flip(0) * 1.0000001, *tensors[1:]]))


def test_a_sharded_step_is_reverted(tmp_path):
    """As on a GPU, with DTensors and the EMA: the same bits as when the value is read first."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        found = []
        for how in (update_if_finite, update_then_revert):
            torch.manual_seed(0)
            model = fully_shard(nn.Linear(4, 3))
            assert all(isinstance(value, DTensor) for value in model.parameters())
            parts = [
                torch.optim.Muon([model.weight], lr=0.1),
                torch.optim.AdamW([model.bias], lr=0.1),
            ]
            ema = WeightEma(dict(model.named_parameters()), 0.9)

            def update(step, parts=parts, ema=ema):
                for part in parts:
                    part.step()
                ema.update(step)

            for step in range(4):
                loss = model(torch.randn(5, 4)).square().mean() * (float("nan") if step == 2 else 1)
                loss.backward()
                norm = full_tensor(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                how(norm.isfinite(), partial(update, step), model, parts, ema.mean.values())
                for part in parts:
                    part.zero_grad()
            states = [
                value for part in parts for state in part.state.values() for value in state.values()
            ]
            found.append(
                [
                    full_tensor(value.detach())
                    for value in (*model.parameters(), *ema.mean.values(), *states)
                ]
            )
        assert len(found[0]) == len(found[1]) and all(torch.equal(a, b) for a, b in zip(*found))
    finally:
        dist.destroy_process_group()
