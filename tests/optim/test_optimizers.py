"""The learning rate is a function of the step."""

import pytest
import torch
from torch import nn

from cjepa_dist.config.schema import OptimizerConfig
from cjepa_dist.optim.learning_rate import learning_rate
from cjepa_dist.optim.optimizers import Muon, build_optimizers


def test_published_aloe_schedule():
    config = OptimizerConfig(
        name="adam", lr=1e-3, schedule="cosine", warmup_ratio=0.1, min_lr_ratio=0.01
    )
    rates = [learning_rate(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 100)
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) in (99, 100)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)
    assert all(a >= b for a, b in zip(rates[100:], rates[101:]))


def test_constant_without_warmup():
    assert {learning_rate(step, 10, OptimizerConfig()) for step in range(10)} == {5e-4}


def test_muon_takes_the_matrices_and_nothing_is_left_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    parts = build_optimizers(model, OptimizerConfig(name="muon"))
    sizes = [
        sum(p.numel() for group in part.param_groups for p in group["params"]) for part in parts
    ]
    assert sizes == [4 * 3 + 3 * 2, sum(p.numel() for p in model.parameters()) - 18]
    model(torch.randn(5, 4)).sum().backward()
    before = [p.clone() for p in model.parameters()]
    for part in parts:
        part.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("native", ["bf16", "fp32"])
def test_muon_is_torchs(native, monkeypatch):
    """Bit for bit where Newton-Schulz steps are in bfloat16; in float32 as near as bfloat16 is."""
    monkeypatch.setattr("cjepa_dist.optim.optimizers.native_precision", lambda: native)
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(3, 8)]
    found = []
    for kind in (Muon, torch.optim.Muon):
        weights = [nn.Parameter(value.clone()) for value in start]
        optimizer = kind(weights, lr=0.05, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        for step in range(3):
            for weight in weights:
                weight.grad = torch.randn(
                    weight.shape, generator=torch.Generator().manual_seed(step)
                )
            optimizer.step()
        found.append(weights)
        assert all(set(optimizer.state[weight]) == {"momentum_buffer"} for weight in weights)
    for ours, theirs in zip(*found):
        assert (
            torch.equal(ours, theirs)
            if native == "bf16"
            else torch.allclose(ours, theirs, atol=3e-3)
        )
        assert not torch.allclose(
            ours, start[0] if ours.shape == start[0].shape else start[1], atol=1e-2
        )
