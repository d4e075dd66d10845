"""Measures of collapsed predictions: variance and effective rank."""

import pytest
import torch

from cjepa_dist.tasks.collapse import collapse_metrics, collapse_moments


def test_collapse():
    torch.manual_seed(0)
    x, seen = torch.randn(4000, 3, 8) + 5, torch.rand(4000, 3) < 0.7
    whole = collapse_metrics(collapse_moments(x, x, seen))
    assert whole["predicted_variance"] == pytest.approx(1) and whole[
        "effective_rank"
    ] == pytest.approx(8, rel=0.01)
    constant = collapse_metrics(collapse_moments(torch.full_like(x, 3.0), x, seen))
    assert (
        constant["predicted_variance"] == pytest.approx(0, abs=1e-9)
        and constant["effective_rank"] == 1
    )
    plane = x.clone()
    plane[..., 2:] = 1.0
    assert collapse_metrics(collapse_moments(plane, x, seen))["effective_rank"] == pytest.approx(
        2, rel=0.01
    )
    parts = sum(
        collapse_moments(a, b, s) for a, b, s in zip(plane.split(7), x.split(7), seen.split(7))
    )
    assert collapse_metrics(parts) == pytest.approx(
        collapse_metrics(collapse_moments(plane, x, seen))
    )
    unseen = torch.where(seen[..., None], x, 1e6)
    assert collapse_metrics(collapse_moments(unseen, unseen, seen)) == pytest.approx(whole)
    assert collapse_metrics(collapse_moments(x, x, torch.zeros_like(seen))) == {}
