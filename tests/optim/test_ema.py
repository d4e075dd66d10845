"""The exponential moving average of the weights."""

import pytest
import torch
from torch import nn

from cjepa_dist.optim.ema import WeightEma


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
