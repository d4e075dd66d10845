"""Summary graphs: lagged edges of a known process are found, reproducibly, without side effects."""

import importlib.util
import logging
import os
import sys

import numpy as np
import pytest
import torch

from cjepa_dist.causal import discovery
from cjepa_dist.causal.discovery import METHODS, TAU, principal_components, summary_graph
from cjepa_dist.errors import UserError

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("castle") is None, reason="gcastle is not installed (extra `summary`)"
)
S, D, LAG = 4, 6, 2
EDGES = {(1, 0), (2, 3)}  # (i, j): j moves i


def video(frames: int = 160) -> np.ndarray:
    """A linear process in which slots follow themselves and their parents LAG frames later.

    The state of a slot has two dimensions; it is embedded in D dimensions, and a constant is added
    that identifies the slot.
    """
    generator = np.random.default_rng(0)
    follow = 0.2 * np.eye(S)
    for edge in EDGES:
        follow[edge] = 0.7
    state = np.zeros((frames, S, 2))
    for t in range(LAG, frames):
        state[t] = follow @ state[t - LAG] + generator.normal(size=(S, 2))
    return (state @ generator.normal(size=(2, D)) + 5 * generator.normal(size=(S, D))).astype(
        np.float32
    )


@needs_library
@pytest.mark.parametrize("method", METHODS)
def test_finds_lagged_edges_and_leaves_no_trace(method: str) -> None:
    log = logging.getLogger()
    before = (
        torch.get_default_dtype(),
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        log.handlers[:],
        log.level,
        dict(os.environ),
    )
    scores = summary_graph(video(), method, lag=LAG, components=2, seed=1)
    assert scores.shape == (S, S) and scores.dtype == np.float32 and not scores.diagonal().any()
    assert {tuple(edge) for edge in np.argwhere(scores > TAU).tolist()} == EDGES
    assert np.array_equal(scores, summary_graph(video(), method, lag=LAG, components=2, seed=1))
    after = (
        torch.get_default_dtype(),
        torch.get_rng_state(),
        np.random.get_state()[1],
        log.handlers[:],
        log.level,
        dict(os.environ),
    )
    assert all(
        np.array_equal(a, b) if isinstance(a, np.ndarray | torch.Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


def test_components_drop_the_identity_of_slots() -> None:
    parts = principal_components(video().astype(np.float64), 2)
    assert parts.shape == (160, S, 2)
    np.testing.assert_allclose(parts.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(parts.std((0, 1)), 1)
    assert np.isfinite(principal_components(np.ones((10, S, D)), 3)).all(), (
        "a video in which nothing changes"
    )


def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "castle.algorithms", None)
    with pytest.raises(UserError, match="pip install gcastle"):
        summary_graph(video(), "notears", lag=LAG)
    with pytest.raises(UserError, match="too short"):
        summary_graph(video(3), "notears", lag=LAG)
    assert torch.get_default_dtype() == torch.float32 and discovery.METHODS
