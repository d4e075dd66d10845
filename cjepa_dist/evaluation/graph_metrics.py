"""Edges against the truth: how well scores rank them, how good the edges at A > 0.5 are, and the same among pairs that are close.

    Edges (flat, one entry a pair) ──> measure ──> auroc, auprc, f1, best_f1 (scikit-learn), shd per window, near_auroc
                                   └─> Tallies ──> the same for any number of copies of each video (bootstrap)

Pairs are ordered: a contact is two of them, one each way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

MEASURES = ("auroc", "auprc", "f1", "best_f1", "shd", "near_auroc")


@dataclass(frozen=True)
class Edges:
    """Ordered pairs of two present slots, N of them, over some windows; all arrays (N,)."""

    score: np.ndarray  # float, higher = more influence
    edge: np.ndarray  # bool, the graph has it (A > 0.5)
    truth: np.ndarray  # bool
    near: np.ndarray  # bool, close without a contact: the hard negatives
    window: np.ndarray  # int, 0 .. W-1
    video: np.ndarray  # int, 0 .. V-1
    videos: int  # V, those without a pair included
    windows_by_video: np.ndarray  # (V,)


def measure(edges: Edges) -> dict[str, float]:
    """Point estimates; nan where a measure has no meaning (no positive, or no negative).

    `auroc`, `auprc` (average precision; chance is `base_rate`, the share of true pairs), `f1` at A > 0.5, `best_f1` at the
    best threshold, `shd` = structural Hamming distance = wrong ordered pairs per window, `near_auroc` = AUROC of true pairs against near
    misses alone: what distance cannot tell.
    """
    truth, some = edges.truth, bool(edges.truth.any())
    close = edges.truth | edges.near
    windows = edges.windows_by_video.sum()
    return {
        "auroc": auroc(edges.score, truth),
        "auprc": float(average_precision_score(truth, edges.score)) if some else float("nan"),
        "f1": float(f1_score(truth, edges.edge, zero_division=0.0)) if some else float("nan"),
        "best_f1": best_f1(edges.score, truth),
        "shd": float((edges.edge != truth).sum() / windows) if windows else float("nan"),
        "near_auroc": auroc(edges.score[close], truth[close]),
        "base_rate": float(truth.mean()) if len(truth) else float("nan"),
    }


def best_f1(score: np.ndarray, truth: np.ndarray) -> float:
    """F1 at the threshold that suits these very pairs best: what calibration could gain at most; nan without a positive."""
    if not truth.any():
        return float("nan")
    precision, recall, _ = precision_recall_curve(truth, score)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve, nan unless both classes occur."""
    if not truth.any() or truth.all():
        return float("nan")
    return float(roc_auc_score(truth, score))


class Tallies:
    """The measures as a function of how often each video counts, (V,) -> (len(MEASURES),): what a bootstrap over videos draws again and
    again.
    """

    def __init__(self, edges: Edges) -> None:
        close = edges.truth | edges.near
        self.all = Ranking(edges.score, edges.truth, edges.video)
        self.near = Ranking(edges.score[close], edges.truth[close], edges.video[close])

        def by_video(flags: np.ndarray) -> np.ndarray:
            return np.bincount(edges.video[flags], minlength=edges.videos).astype(float)

        self.hits, self.wrong = (
            by_video(edges.edge & edges.truth),
            by_video(edges.edge != edges.truth),
        )
        self.windows = edges.windows_by_video.astype(float)

    def __call__(self, copies: np.ndarray) -> np.ndarray:
        copies = copies.astype(float)
        hits, wrong, windows = (
            float(copies @ part) for part in (self.hits, self.wrong, self.windows)
        )
        area, precision, best = self.all(copies)
        f1 = float("nan") if np.isnan(precision) else 2 * hits / (2 * hits + wrong)
        return np.array(
            [
                area,
                precision,
                f1,
                best,
                wrong / windows if windows else float("nan"),
                self.near(copies)[0],
            ]
        )


class Ranking:
    """AUROC, average precision and best F1 of one ranking under integer weights of its videos. Sorted once; ties share one threshold."""

    def __init__(self, score: np.ndarray, truth: np.ndarray, video: np.ndarray) -> None:
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        self.truth, self.video = truth[order], video[order]
        self.starts = (
            np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
            if len(score)
            else np.zeros(0, int)
        )

    def __call__(self, copies: np.ndarray) -> tuple[float, float, float]:
        """(AUROC, average precision, best F1) with video v counted copies[v] times; nan where undefined."""
        if not len(self.starts):
            return float("nan"), float("nan"), float("nan")
        weight = copies[self.video]
        positive = np.add.reduceat(weight * self.truth, self.starts)
        negative = np.add.reduceat(weight * ~self.truth, self.starts)
        above, total, others = positive.cumsum(), positive.sum(), negative.sum()
        area = (
            float((negative * (above - 0.5 * positive)).sum() / (total * others))
            if total and others
            else float("nan")
        )
        if not total:
            return area, float("nan"), float("nan")
        chosen = above + negative.cumsum()
        precision = above / np.maximum(chosen, 1e-300)
        return (
            area,
            float((positive * precision).sum() / total),
            float((2 * above / (chosen + total)).max()),
        )
