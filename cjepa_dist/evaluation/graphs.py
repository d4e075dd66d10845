"""Edges of every graph estimator against contacts and influence in the simulator.

    windows, half with a contact ──estimate_graph──> adjacency and scores of pairs of present slots
        ──edge_metrics, bootstrap over videos──> {target: {estimator: {metric: value, low, high}}}

The `summary` estimators (`causal.discovery`) give one graph per video, the same for all of its
windows; the others give one per window. Distance and controls are estimators like any other.

Targets: `contact` (the pair touches after the second history frame); `contact_new` (it touches only
in the predicted interval; pairs that touched earlier do not count, since removing a slot from the
history prevents that contact too); `influence` (in a re-simulation without j, i moves differently),
where the data has it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import discovery
from cjepa_dist.causal.attention_graph import present_pairs
from cjepa_dist.causal.graph import GraphContext, calibrate, estimate_graph
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, INTERVENTIONS, GraphConfig
from cjepa_dist.data.sampler import sample_ids
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.graph_metrics import (
    EDGE_METRICS,
    Edges,
    ResampledEdgeMetrics,
    edge_curves,
    edge_metrics,
)
from cjepa_dist.models.predictor import SlotPredictor
from cjepa_dist.runtime.progress import report_progress

INTERVENTIONAL = tuple(f"interventional:{how}" for how in INTERVENTIONS)

# One graph per video. Slow, so only on request.
SUMMARY_ESTIMATORS = tuple(f"summary:{method}" for method in discovery.METHODS)

ESTIMATORS = tuple(
    row
    for name in GRAPH_ESTIMATORS
    for row in (INTERVENTIONAL if name == "interventional" else (name,))
)

TARGETS = ("contact", "contact_new", "influence")


def graph_config(name: str, base: GraphConfig | None = None) -> GraphConfig:
    """`interventional:hide` -> the estimator and its intervention; other settings from `base`."""
    estimator, _, intervention = name.partition(":")
    base = base or GraphConfig()
    return dataclasses.replace(
        base, estimator=estimator, intervention=intervention or base.intervention
    )


def evaluate_graphs(
    predictor: SlotPredictor,
    dataset: InMemoryWindows,
    context: GraphContext,
    estimators: Sequence[str] = ESTIMATORS,
    *,
    windows: int = 2048,
    batch_size: int = 128,
    draws: int = 200,
    config: GraphConfig | None = None,
) -> dict[str, Any]:
    """`targets[target][estimators][name][metric] = {value, low, high}`, for JSON.

    `targets[target][curves][name]` has the precision-recall curves of the same edges.
    Low and high bound 95 % of `draws` bootstrap draws over videos; None is an undefined metric.
    Also counts of windows, videos and windows with a contact; the `base_rate` of each target among
    ordered pairs of present slots, which is the AUPRC of chance; and the seconds that each summary
    method took per video.

    `dataset` has labels, and contacts in about half of its windows; at most `windows` different
    ones are used. `config` gives threshold, projections and tau. Raises UserError if there are no
    labels, or if gCastle is needed and missing.
    """
    if dataset.labels is None:
        raise UserError(
            "graphs are compared with the simulator's truth, and this data set has none; simulate "
            "one with data_prep.simulate"
        )
    ids = distinct_windows(dataset, context.seed, windows)
    videos, video = np.unique(window_videos(dataset, ids), return_inverse=True)
    label_parts: dict[str, list[np.ndarray]] = {}
    graph_parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        name: ([], []) for name in estimators
    }
    video_scores: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name in (name for name in estimators if name in SUMMARY_ESTIMATORS):
        began = time.perf_counter()
        video_scores[name] = summary_scores(dataset, videos, name, context.seed)
        seconds[name] = round((time.perf_counter() - began) / len(videos), 2)
    for index in np.array_split(np.arange(len(ids)), math.ceil(len(ids) / batch_size)):
        batch = dataset.get_batch(ids[index], index.astype(np.int64))
        batch = to_device(batch, context.sigma2.device)
        present = present_slots(predictor, batch)
        names = [name for name in (*TARGETS, "near_miss") if name in batch]
        for name, value in {"present": present, **{n: batch[n] for n in names}}.items():
            label_parts.setdefault(name, []).append(value.cpu().numpy())
        for name, (adjacencies, scores) in graph_parts.items():
            if name in video_scores:
                graph = summary_adjacency(video_scores[name][video[index]], present)
            else:
                graph = estimate_batch(name, predictor, batch, present, context, config)
            adjacencies.append(graph[0])
            scores.append(graph[1])
        report_progress(int(index[-1]) + 1, len(ids), "windows")
    labels = {name: np.concatenate(parts) for name, parts in label_parts.items()}
    graphs = {name: (np.concatenate(a), np.concatenate(s)) for name, (a, s) in graph_parts.items()}
    return {
        "windows": len(ids),
        "videos": len(videos),
        "windows_with_contact": int(labels["contact"].any((1, 2)).sum()),
        "bootstrap_draws": draws,
        "summary_seconds": seconds,
        "targets": {
            t: score_target(t, labels, graphs, video, len(videos), draws, context.seed)
            for t in TARGETS
            if t in labels
        },
    }


def score_target(
    target: str,
    labels: dict[str, np.ndarray],
    graphs: dict[str, tuple[np.ndarray, np.ndarray]],
    video: np.ndarray,
    videos: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """One target: its base rates, and the metrics of every estimator with intervals."""
    present = labels["present"]
    pairs = present[:, :, None] & present[:, None] & ~np.eye(present.shape[1], dtype=bool)
    if target == "contact_new":
        pairs &= ~(labels["contact"] & ~labels["contact_new"])
    window = np.nonzero(pairs)[0]
    truth, near_miss = labels[target][pairs], labels["near_miss"][pairs]
    estimators: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for name, (adjacency, scores) in graphs.items():
        edges = Edges(
            score=scores[pairs],
            edge=adjacency[pairs] > 0.5,
            truth=truth,
            near_miss=near_miss & ~truth,
            window=window,
            video=video[window],
            videos=videos,
            windows_by_video=np.bincount(video, minlength=videos),
        )
        values, resampled = edge_metrics(edges), ResampledEdgeMetrics(edges)
        curves[name] = edge_curves(edges)

        def metrics_of(
            drawn: np.ndarray, resampled: ResampledEdgeMetrics = resampled
        ) -> np.ndarray:
            return resampled(np.bincount(drawn, minlength=videos))

        low, high = bootstrap(np.arange(videos), metrics_of, draws, seed)
        estimators[name] = {
            metric: {
                "value": json_number(values[metric]),
                "low": json_number(low[m]),
                "high": json_number(high[m]),
            }
            for m, metric in enumerate(EDGE_METRICS)
        }
    close = truth | near_miss
    return {
        "base_rate": json_number(truth.mean() if len(truth) else math.nan),
        "near_miss_base_rate": json_number(truth[close].mean() if close.any() else math.nan),
        "pairs": len(truth),
        "near_misses": int((near_miss & ~truth).sum()),
        "estimators": estimators,
        "curves": curves,
    }


def example_graphs(
    predictor: SlotPredictor,
    dataset: InMemoryWindows,
    context: GraphContext,
    estimators: Sequence[str] = (
        "published",
        "attention",
        "attention_rollout",
        "gradient",
        "interventional:empty",
        "distance",
    ),
    *,
    samples: int = 6,
    config: GraphConfig | None = None,
) -> dict[str, np.ndarray]:
    """{title: adjacency (B, S, S)} of a few windows with a contact, ground truth first."""
    ids = distinct_windows(dataset, context.seed, 64)
    has_contact = dataset.get_batch(ids, np.arange(len(ids)))["contact"].any(2).any(1).numpy()
    # Windows with a contact first: the others have no edge. At least two, to swap slots between.
    order = np.argsort(~has_contact, kind="stable")[: max(samples, 2)]
    batch = to_device(dataset.get_batch(ids[order], order.astype(np.int64)), context.sigma2.device)
    present = present_slots(predictor, batch)
    graphs = {
        f"{target} (truth)": batch[target].float().cpu().numpy()
        for target in ("contact", "influence")
        if target in batch
    }
    graphs |= {
        name: estimate_batch(name, predictor, batch, present, context, config)[0]
        for name in estimators
    }
    return {name: adjacency[:samples] for name, adjacency in graphs.items()}


def distinct_windows(dataset: InMemoryWindows, seed: int, windows: int) -> np.ndarray:
    """The ids of at most `windows` windows; one that `contact_share` repeats appears once."""
    ids = sample_ids(seed, 0, min(windows, len(dataset)), len(dataset))
    return ids[np.sort(np.unique(window_numbers(dataset, ids), return_index=True)[1])]


def window_videos(dataset: InMemoryWindows, ids: np.ndarray) -> np.ndarray:
    """The video of each window."""
    return window_numbers(dataset, ids) // dataset.windows_per_video


def window_numbers(dataset: InMemoryWindows, ids: np.ndarray) -> np.ndarray:
    """Which window of the split each id is: `contact_share` gives a window several ids."""
    return ids if dataset.window_ids is None else dataset.window_ids[ids]


def estimate_batch(
    name: str,
    predictor: SlotPredictor,
    batch: dict[str, Tensor],
    present: Tensor,
    context: GraphContext,
    config: GraphConfig | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and raw scores of a batch, float32 arrays (B, S, S)."""
    history = batch["slots"][:, : predictor.config.history_frames]
    context = dataclasses.replace(context, sample=batch["sample"])
    graph = estimate_graph(
        graph_config(name, config), predictor, history, present, context=context, truth=batch
    )
    return graph.adjacency.float().cpu().numpy(), graph.scores.float().cpu().numpy()


def summary_scores(
    dataset: InMemoryWindows, videos: np.ndarray, name: str, seed: int
) -> np.ndarray:
    """Raw scores (V, S, S) of some videos by `summary:METHOD`, from frames a model step apart."""
    method, lag = name.removeprefix("summary:"), int(dataset.frame_offsets[1])
    frames = (dataset.read_video(video) for video in videos)
    return np.stack([discovery.summary_graph(f, method, lag=lag, seed=seed) for f in frames])


def summary_adjacency(scores: np.ndarray, present: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and raw scores of windows (B, S, S), from the scores of their videos (B, S, S)."""
    raw = torch.from_numpy(scores).to(present.device) * present_pairs(present)
    tau = torch.full((), discovery.TAU, device=present.device)
    return calibrate(raw, tau, present).cpu().numpy(), raw.cpu().numpy()


def present_slots(predictor: SlotPredictor, batch: dict[str, Tensor]) -> Tensor:
    """(B, S) bool: the slot holds an object in the last history frame."""
    return batch["present"][:, predictor.config.history_frames - 1]


def json_number(value: Any) -> float | None:
    """Rounded to 6 digits; None for nan, which JSON does not have."""
    return None if math.isnan(float(value)) else round(float(value), 6)
