"""Learning rates are a function of the step; which optimizer updates which weight."""

import pytest
import torch
from torch import nn

from cjepa_dist.config.schema import AloeConfig, OptimizerConfig, PredictorConfig
from cjepa_dist.models.aloe import Aloe
from cjepa_dist.models.predictor import SlotPredictor
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


def small_world_model():
    config = PredictorConfig(
        slots=3, slot_dim=6, width=8, depth=2, heads=2, mlp_dim=12, last_anchor=True
    )
    return SlotPredictor(config)


def small_aloe():
    return Aloe(AloeConfig(slots=3, slot_dim=6, frames=2, width=8, depth=2, heads=2, mlp_dim=12))


@pytest.mark.parametrize("make", [small_world_model, small_aloe])
def test_muon_takes_the_matrices_of_blocks_alone(make):
    """No anchor, input, head or embedding; every weight has one optimizer."""
    model = make()
    name_of = {p: name for name, p in model.named_parameters()}
    muon, rest = (
        [name_of[p] for group in part.param_groups for p in group["params"]]
        for part in build_optimizers(model, OptimizerConfig(name="muon"))
    )
    of_block = ("attention.qkv.weight", "attention.out.weight", "up.weight", "down.weight")
    assert sorted(muon) == sorted(f"blocks.{i}.{name}" for i in range(2) for name in of_block)
    assert sorted(muon + rest) == sorted(name_of.values())


def test_muon_updates_queries_keys_and_values_apart(monkeypatch):
    """As three matrices: the update of one does not depend on the gradient of another."""
    monkeypatch.setattr("cjepa_dist.optim.optimizers.native_precision", lambda: "fp32")
    torch.manual_seed(0)
    start, gradient = (
        torch.randn(3, 4, 4),
        torch.randn(3, 4, 4) * torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1),
    )

    def moved(groups, weights, gradients):
        optimizer = Muon(groups, lr=0.05, weight_decay=0.01)
        for weight, value in zip(weights, gradients):
            weight.grad = value.clone()
        optimizer.step()
        return torch.stack([weight.detach() for weight in weights])

    apart = [nn.Parameter(value.clone()) for value in start]
    joined = nn.Parameter(start.flatten(0, 1).clone())
    one_by_one = moved(apart, apart, gradient)
    groups = [{"params": [joined], "matrices": 3}]
    together = moved(groups, [joined], [gradient.flatten(0, 1)])[0].view(3, 4, 4)
    torch.testing.assert_close(together, one_by_one)


@pytest.mark.parametrize("native", ["bf16", "fp32"])
def test_muon_is_torchs(native, monkeypatch):
    """Bit for bit where Newton-Schulz steps are in bfloat16; in float32 as near as bfloat16 is."""
    monkeypatch.setattr("cjepa_dist.optim.optimizers.native_precision", lambda: native)
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(3, 8)]
    found = []
    for kind in (Muon, torch.optim.Muon):
        weights = [nn.Parameter(value.clone()) for value in start]
        extra = {} if kind is Muon else {"adjust_lr_fn": "match_rms_adamw"}
        optimizer = kind(weights, lr=0.05, weight_decay=0.01, **extra)
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
