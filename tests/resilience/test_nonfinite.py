"""Steps with a non-finite loss or gradient change nothing."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cjepa_dist.optim.ema import WeightEma
from cjepa_dist.resilience.nonfinite import (
    propagate_nonfinite,
    update_if_finite,
    update_then_revert,
)
from cjepa_dist.runtime.collectives import full_tensor


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


def make_optimizers(model, kind):
    if kind == "muon":
        return [
            torch.optim.Muon([model.weight], lr=0.1),
            torch.optim.AdamW([model.bias], lr=0.1, foreach=True),
        ]
    return [torch.optim.AdamW(model.parameters(), lr=0.1, **{kind: True})]


def snapshot(model, parts):
    tensors = [*model.state_dict().values()]
    tensors += [
        value for part in parts for state in part.state.values() for value in state.values()
    ]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("kind", ["foreach", "fused", "muon"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_nonfinite_step_changes_nothing(kind, bad):
    """As on a CPU (value read first) and as on a GPU (reverted): the same bits as without it."""
    torch.manual_seed(0)
    found = []
    for how in (update_if_finite, update_then_revert, None):
        model = nn.Linear(4, 3)
        model.register_buffer("statistics", torch.zeros(()))
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.arange(value.numel()).reshape(value.shape) / 10)
        parts = make_optimizers(model, kind)

        def update(model=model, parts=parts):
            for part in parts:
                part.step()
            model.statistics += model.weight.grad.sum()

        for step in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if step == bad else step - 1.5)
            good = model.weight.grad.isfinite().all()
            if how:
                how(good, update, model, parts)
            elif good:
                update()
        found.append(snapshot(model, parts))
    for tensors in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], tensors)) and len(tensors) == len(
            found[0]
        )


def test_nonfinite_losses_get_nonfinite_gradients():
    """A mean square that overflows has finite gradients. A finite loss stays as it is."""
    for size, finite in ((1e25, False), (0.3, True)):
        x = torch.tensor([size, 0.1], requires_grad=True)
        loss = x.square().mean()
        (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert plain.isfinite().all() and loss.isfinite() == finite
        (found,) = torch.autograd.grad(propagate_nonfinite(loss), x)
        assert torch.equal(found, plain) if finite else found.isnan().all()
