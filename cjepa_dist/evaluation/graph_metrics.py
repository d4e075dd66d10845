"""Metrics of graph edges against the truth.

    Edges (one entry per ordered pair) ──edge_metrics──> {metric: value}, by scikit-learn
                                       ├──edge_curves──> precision by recall, to draw
                                       └──ResampledEdgeMetrics──> the same for any number of copies
                                                                  of each video, for the bootstrap

Pairs are ordered: a contact is two of them, one each way. scikit-learn is imported where it is
used: that takes a second and more, and most commands that read graphs compute no metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EDGE_METRICS = ("auroc", "auprc", "f1", "best_f1", "shd", "near_miss_auroc")
CURVE_POINTS = 51  # of a stored precision-recall curve: enough to draw it


@dataclass(frozen=True)
class Edges:
    """Ordered pairs of two present slots, N of them, over some windows; all arrays (N,)."""

    score: np.ndarray  # float, higher = more influence
    edge: np.ndarray  # bool, the graph has it (A > 0.5)
    truth: np.ndarray  # bool
    near_miss: np.ndarray  # bool, close without a contact: the hard negatives
    window: np.ndarray  # int, 0 .. W-1
    video: np.ndarray  # int, 0 .. V-1
    videos: int  # V, including those without a pair
    windows_by_video: np.ndarray  # (V,)


def edge_metrics(edges: Edges) -> dict[str, float]:
    """Point estimates; nan where a metric is undefined (no positive, or no negative).

    - auroc, auprc: of the scores; auprc is average precision, that of chance is base_rate
    - f1 at A > 0.5; best_f1 at the best threshold
    - shd: structural Hamming distance, wrong ordered pairs per window
    - near_miss_auroc: of true pairs against near misses only, which distance does not separate
    - base_rate: the fraction of true pairs
    """
    from sklearn.metrics import average_precision_score, f1_score

    truth, any_true = edges.truth, bool(edges.truth.any())
    close = edges.truth | edges.near_miss
    windows = edges.windows_by_video.sum()
    return {
        "auroc": auroc(edges.score, truth),
        "auprc": float(average_precision_score(truth, edges.score)) if any_true else float("nan"),
        "f1": float(f1_score(truth, edges.edge, zero_division=0.0)) if any_true else float("nan"),
        "best_f1": best_f1(edges.score, truth),
        "shd": float((edges.edge != truth).sum() / windows) if windows else float("nan"),
        "near_miss_auroc": auroc(edges.score[close], truth[close]),
        "base_rate": float(truth.mean()) if len(truth) else float("nan"),
    }


def best_f1(score: np.ndarray, truth: np.ndarray) -> float:
    """F1 at the best threshold for these pairs, a bound for calibration; nan without a positive."""
    from sklearn.metrics import precision_recall_curve

    if not truth.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(truth, score)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


def edge_curves(edges: Edges) -> dict[str, dict[str, list[float]] | None]:
    """Precision-recall curves, `all` over every pair, `near_miss` of true pairs and near misses."""
    close = edges.truth | edges.near_miss
    return {
        "all": precision_by_recall(edges.score, edges.truth),
        "near_miss": precision_by_recall(edges.score[close], edges.truth[close]),
    }


def precision_by_recall(
    score: np.ndarray, truth: np.ndarray, points: int = CURVE_POINTS
) -> dict[str, list[float]] | None:
    """{"recall", "precision"} at fewer than `points` thresholds, recall rising.

    Each is the first threshold that reaches the next recall of an even grid: a point of the curve,
    not an interpolation. None unless both classes occur.
    """
    from sklearn.metrics import precision_recall_curve

    if not truth.any() or truth.all():
        return None
    precision, recall, _ = precision_recall_curve(truth, score)
    # scikit-learn's recall falls and ends at an added point (recall 0, precision 1).
    precision, recall = precision[-2::-1], recall[-2::-1]
    grid = np.linspace(0.0, 1.0, points)[1:]
    at = np.unique(np.minimum(np.searchsorted(recall, grid), len(recall) - 1))
    return {
        "recall": [round(float(value), 4) for value in recall[at]],
        "precision": [round(float(value), 4) for value in precision[at]],
    }


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve, nan unless both classes occur."""
    from sklearn.metrics import roc_auc_score

    if not truth.any() or truth.all():
        return float("nan")
    return float(roc_auc_score(truth, score))


class ResampledEdgeMetrics:
    """EDGE_METRICS as a function of how often each video counts: (V,) -> (len(EDGE_METRICS),).

    A bootstrap over videos calls it for every draw.
    """

    def __init__(self, edges: Edges) -> None:
        close = edges.truth | edges.near_miss
        self.all = WeightedRanking(edges.score, edges.truth, edges.video)
        self.close = WeightedRanking(edges.score[close], edges.truth[close], edges.video[close])

        def by_video(flags: np.ndarray) -> np.ndarray:
            return np.bincount(edges.video[flags], minlength=edges.videos).astype(float)

        self.correct = by_video(edges.edge & edges.truth)
        self.wrong = by_video(edges.edge != edges.truth)
        self.windows = edges.windows_by_video.astype(float)

    def __call__(self, copies: np.ndarray) -> np.ndarray:
        copies = copies.astype(float)
        correct, wrong, windows = (
            float(copies @ counts) for counts in (self.correct, self.wrong, self.windows)
        )
        auroc, auprc, best_f1 = self.all(copies)
        f1 = float("nan") if np.isnan(auprc) else 2 * correct / (2 * correct + wrong)
        shd = wrong / windows if windows else float("nan")
        near_miss_auroc, _, _ = self.close(copies)
        return np.array([auroc, auprc, f1, best_f1, shd, near_miss_auroc])


class WeightedRanking:
    """AUROC, average precision and best F1 of a ranking, for integer weights of its videos.

    Sorted once; tied scores share one threshold. Only thresholds that a true pair reaches are
    looked at: the others add nothing to the first two, and have a lower F1 than the one before.
    """

    def __init__(self, score: np.ndarray, truth: np.ndarray, video: np.ndarray) -> None:
        order = np.argsort(-score, kind="stable")
        ranked, true = score[order], np.flatnonzero(truth[order])
        self.video = video[order]
        self.true_video = self.video[true]
        # Runs of tied scores, as the index of the first entry of each, and where the last one ends.
        is_start = np.r_[True, ranked[1:] != ranked[:-1]][: len(score)]
        edges = np.r_[np.flatnonzero(is_start), len(score)]
        run, self.first_true = np.unique(is_start.cumsum()[true] - 1, return_index=True)
        self.begin, self.end = edges[run], edges[run + 1]

    def __call__(self, copies: np.ndarray) -> tuple[float, float, float]:
        """(AUROC, average precision, best F1), video v counted copies[v] times."""
        if not len(self.true_video):
            return float("nan"), float("nan"), float("nan")
        weight = np.zeros(len(self.video) + 1)  # of the entries before each
        copies[self.video].cumsum(out=weight[1:])
        positive = np.add.reduceat(copies[self.true_video], self.first_true)
        correct, predicted = positive.cumsum(), weight[self.end]
        positives, negatives = correct[-1], weight[-1] - correct[-1]
        auroc = float("nan")
        if positives and negatives:
            tied = predicted - weight[self.begin] - positive  # negatives of the same score
            below = negatives - (predicted - correct)
            auroc = float((positive * (below + 0.5 * tied)).sum() / (positives * negatives))
        if not positives:
            return auroc, float("nan"), float("nan")
        precision = correct / np.maximum(predicted, 1e-300)
        average_precision = float((positive * precision).sum() / positives)
        best_f1 = float((2 * correct / (predicted + positives)).max())
        return auroc, average_precision, best_f1
