"""Edge metrics: the resampled ones equal scikit-learn's on data that are really repeated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjepa_dist.evaluation.graph_metrics import (
    EDGE_METRICS,
    Edges,
    ResampledEdgeMetrics,
    WeightedRanking,
    auroc,
    edge_curves,
    edge_metrics,
    precision_by_recall,
)

VIDEOS = 5


def edges(seed: int, pairs: int = 200, levels: int = 10, base_rate: float = 0.2) -> Edges:
    """Random pairs with many ties; the score knows something."""
    generator = np.random.default_rng(seed)
    truth = generator.random(pairs) < base_rate
    score = np.floor(levels * np.clip(generator.random(pairs) * 0.7 + 0.3 * truth, 0, 1)) / levels
    near = ~truth & (generator.random(pairs) < 0.3)
    window = np.sort(generator.integers(0, 20, pairs))
    return Edges(score, score > 0.6, truth, near, window, window // 4, VIDEOS, np.full(VIDEOS, 4))


def repeated(e: Edges, copies: np.ndarray) -> Edges:
    index = np.concatenate(
        [np.flatnonzero(e.video == v) for v in range(VIDEOS) for _ in range(copies[v])]
        or [np.zeros(0, int)]
    ).astype(int)
    pick = {
        name: getattr(e, name)[index]
        for name in ("score", "edge", "truth", "near_miss", "window", "video")
    }
    return Edges(**pick, videos=VIDEOS, windows_by_video=e.windows_by_video * copies)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    copies=st.lists(st.integers(0, 3), min_size=VIDEOS, max_size=VIDEOS).filter(any),
    base_rate=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
)
def test_tallies_equal_scikit_learn_on_repeated_data(
    seed: int, copies: list[int], base_rate: float
) -> None:
    e = edges(seed, base_rate=base_rate)
    expected = edge_metrics(repeated(e, np.array(copies)))
    np.testing.assert_allclose(
        ResampledEdgeMetrics(e)(np.array(copies)),
        [expected[name] for name in EDGE_METRICS],
        rtol=1e-9,
    )


def test_by_hand() -> None:
    e = Edges(
        score=np.array([4.0, 3.0, 2.0, 1.0]),
        edge=np.array([True, True, False, False]),
        truth=np.array([True, False, True, False]),
        near_miss=np.array([False, True, False, False]),
        window=np.array([0, 0, 1, 1]),
        video=np.zeros(4, int),
        videos=1,
        windows_by_video=np.array([2]),
    )
    got = edge_metrics(e)
    assert (
        got["auroc"] == 0.75
        and got["base_rate"] == 0.5
        and got["f1"] == 0.5
        and got["best_f1"] == pytest.approx(0.8)
    )
    assert got["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["shd"] == 1.0  # two wrong pairs in two windows
    assert got["near_miss_auroc"] == 0.5  # one contact above the near miss, one below


@given(seed=st.integers(0, 1000), points=st.integers(2, 80))
@settings(max_examples=40, deadline=None)
def test_a_thinned_curve_holds_points_of_the_curve(seed: int, points: int) -> None:
    e = edges(seed, base_rate=0.2)
    curve = precision_by_recall(e.score, e.truth, points)
    if e.truth.all() or not e.truth.any():
        assert curve is None
        return
    assert curve is not None and 1 <= len(curve["recall"]) <= points
    assert curve["recall"] == sorted(curve["recall"]) and curve["recall"][-1] == 1.0
    # Every point is what some threshold reaches.
    reached = set()
    for threshold in np.unique(e.score):
        found = e.truth[e.score >= threshold]
        reached.add((round(found.sum() / e.truth.sum(), 4), round(found.mean(), 4)))
    assert set(zip(curve["recall"], curve["precision"])) <= reached


def test_curves_are_of_all_pairs_and_of_near_misses() -> None:
    e = edges(3, base_rate=0.2)
    close = e.truth | e.near_miss
    assert edge_curves(e) == {
        "all": precision_by_recall(e.score, e.truth),
        "near_miss": precision_by_recall(e.score[close], e.truth[close]),
    }
    assert edge_curves(edges(0, base_rate=0.0))["all"] is None


def test_undefined_is_nan() -> None:
    assert np.isnan(auroc(np.zeros(3), np.zeros(3, bool)))
    assert np.isnan(auroc(np.zeros(0), np.zeros(0, bool)))
    assert np.isnan(
        WeightedRanking(np.zeros(0), np.zeros(0, bool), np.zeros(0, int))(np.ones(1))
    ).all()
    nothing = edges(0, base_rate=0.0)
    got = edge_metrics(nothing)
    assert np.isnan(got["auroc"]) and np.isnan(got["auprc"]) and got["shd"] == 0
