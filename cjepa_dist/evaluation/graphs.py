"""Does a graph find who influences whom? Estimators against the simulator's truth, with distance and controls beside them.

    windows, about half with a contact ──> estimate() by each name ──> present pairs ──> measure, bootstrap over videos ──> one table

The `summary` rows are one graph a video (`causal.summary`), the same for all of its windows; the others are one a window.
Targets: `contact` (touched after the second history frame), `contact_new` (only in the predicted interval; pairs that touched earlier are
left out, since removing a slot from the history undoes that contact too), `influence` (re-simulation without j moves i), where the data
has it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import discovery
from cjepa_dist.causal.attention_graph import pairs
from cjepa_dist.causal.graph import GraphContext, calibrate, estimate
from cjepa_dist.config.schema import GRAPH_ESTIMATORS, INTERVENTIONS, GraphConfig
from cjepa_dist.data.sampler import sample_ids
from cjepa_dist.data.windows import InMemoryWindows, to_device
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.graph_metrics import MEASURES, Edges, Tallies, measure
from cjepa_dist.models.predictor import SlotPredictor

INTERVENTIONAL = tuple(f"interventional:{how}" for how in INTERVENTIONS)
SUMMARY = tuple(f"summary:{method}" for method in discovery.METHODS)  # slow: only where asked for
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
    source: InMemoryWindows,
    context: GraphContext,
    estimators: Sequence[str] = ESTIMATORS,
    *,
    windows: int = 2048,
    batch: int = 128,
    draws: int = 200,
    config: GraphConfig | None = None,
) -> dict[str, Any]:
    """JSON-able table `targets[target][estimator][measure] = {value, low, high}`; low and high bound 95 % of `draws` bootstrap draws over
    videos.

    `source` is made with truth=True and contact_share about 0.5; at most `windows` different windows are used. Also counts of windows,
    videos and windows with a contact, and the `base_rate` of each target among ordered pairs of present slots, which is the AUPRC of
    chance. `None` stands for a measure that is undefined. `config` gives threshold, projections and tau. `summary_seconds` is what a video
    took, by method. Raises UserError if the source has no truth, or gCastle is asked for and missing.
    """
    if source.truth is None:
        raise UserError(
            "graphs are measured against the simulator's truth, and this data set has none; simulate one with data_prep.simulate"
        )
    ids = distinct_windows(source, context.seed, windows)
    videos, video = np.unique(videos_of(source, ids), return_inverse=True)
    truths: dict[str, list[np.ndarray]] = {}
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        name: ([], []) for name in estimators
    }
    by_video: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name in (name for name in estimators if name in SUMMARY):
        began = time.perf_counter()
        by_video[name] = summary_graphs(source, videos, name, context.seed)
        seconds[name] = round((time.perf_counter() - began) / len(videos), 2)
    for places in np.array_split(np.arange(len(ids)), math.ceil(len(ids) / batch)):
        part = to_device(source.gather(ids[places], places.astype(np.int64)), context.sigma2.device)
        present = present_slots(predictor, part)
        for name, value in {
            "present": present,
            **{n: part[n] for n in (*TARGETS, "near_miss") if n in part},
        }.items():
            truths.setdefault(name, []).append(value.cpu().numpy())
        for name, (adjacency, scores) in found.items():
            if name in by_video:
                graph = summary_of(by_video[name][video[places]], present)
            else:
                graph = graph_of(name, predictor, part, present, context, config)
            adjacency.append(graph[0])
            scores.append(graph[1])
    known = {name: np.concatenate(parts) for name, parts in truths.items()}
    graphs = {name: (np.concatenate(a), np.concatenate(s)) for name, (a, s) in found.items()}
    return {
        "windows": len(ids),
        "videos": len(videos),
        "windows_with_contact": int(known["contact"].any((1, 2)).sum()),
        "draws": draws,
        "summary_seconds": seconds,
        "targets": {
            t: table(t, known, graphs, video, len(videos), draws, context.seed)
            for t in TARGETS
            if t in known
        },
    }


def table(
    target: str,
    known: dict[str, np.ndarray],
    graphs: dict[str, tuple[np.ndarray, np.ndarray]],
    video: np.ndarray,
    videos: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """One target: its base rates and each estimator's measures with intervals."""
    valid = (
        known["present"][:, :, None]
        & known["present"][:, None]
        & ~np.eye(known["present"].shape[1], dtype=bool)
    )
    if target == "contact_new":
        valid &= ~(known["contact"] & ~known["contact_new"])
    window = np.nonzero(valid)[0]
    truth, near = known[target][valid], known["near_miss"][valid]
    by_video = np.bincount(video, minlength=videos)
    rows: dict[str, Any] = {}
    for name, (adjacency, scores) in graphs.items():
        edges = Edges(
            scores[valid],
            adjacency[valid] > 0.5,
            truth,
            near & ~truth,
            window,
            video[window],
            videos,
            by_video,
        )
        values, tallies = measure(edges), Tallies(edges)

        def again(drawn: np.ndarray, tallies: Tallies = tallies) -> np.ndarray:
            return tallies(np.bincount(drawn, minlength=videos))

        low, high = bootstrap(np.arange(videos), again, n=draws, seed=seed)
        rows[name] = {
            m: {"value": plain(values[m]), "low": plain(low[n]), "high": plain(high[n])}
            for n, m in enumerate(MEASURES)
        }
    close = truth | near
    return {
        "base_rate": plain(truth.mean() if len(truth) else math.nan),
        "near_base_rate": plain(truth[close].mean() if close.any() else math.nan),
        "pairs": len(truth),
        "near_misses": int((near & ~truth).sum()),
        "estimators": rows,
    }


def markdown(result: dict[str, Any], target: str = "contact") -> str:
    """One target as a Markdown table."""
    part = result["targets"][target]
    lines = [
        f"{target}: {part['pairs']} pairs, base rate {show(part['base_rate'])}; {part['near_misses']} near misses; "
        f"{result['windows']} windows, {result['windows_with_contact']} with a contact, of {result['videos']} videos",
        "",
        "| estimator | AUROC | AUPRC | F1 | best F1 | SHD / window | AUROC, near misses |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in part["estimators"].items():
        cells = [
            f"{show(row[m]['value'])} ({show(row[m]['low'])} .. {show(row[m]['high'])})"
            for m in MEASURES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heatmaps(
    predictor: SlotPredictor,
    source: InMemoryWindows,
    context: GraphContext,
    path: str | Path,
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
) -> Path:
    """A PNG: a row for each of a few windows with a contact, the truth in the first column, adjacency by each estimator beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ids = distinct_windows(source, context.seed, 64)
    labels = source.gather(ids, np.arange(len(ids)))
    # Windows with a contact first: an empty truth shows nothing.
    order = np.argsort(~labels["contact"].any(2).any(1).numpy(), kind="stable")[: max(samples, 2)]
    part = to_device(source.gather(ids[order], order.astype(np.int64)), context.sigma2.device)
    present = present_slots(predictor, part)
    columns = {"contact (truth)": part["contact"].float().cpu().numpy()}
    if "influence" in part:
        columns["influence (truth)"] = part["influence"].float().cpu().numpy()
    columns |= {
        name: graph_of(name, predictor, part, present, context, config)[0] for name in estimators
    }
    rows = min(samples, len(order))
    figure, axes = pyplot.subplots(
        rows, len(columns), figsize=(1.7 * len(columns), 1.7 * rows + 0.5), squeeze=False
    )
    for row in range(rows):
        for column, (name, maps) in enumerate(columns.items()):
            axis = axes[row, column]
            axis.imshow(
                np.where(np.eye(maps.shape[1], dtype=bool), np.nan, maps[row]),
                vmin=0,
                vmax=1,
                cmap="viridis",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name.replace("_", "\n").replace(":", "\n"), fontsize=7)
    figure.supxlabel("influence of slot j", fontsize=8)
    figure.supylabel("on slot i", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return Path(path)


def distinct_windows(source: InMemoryWindows, seed: int, windows: int) -> np.ndarray:
    """At most `windows` seeded places of the epoch's table; a window that `contact_share` repeats is taken once. Places are what `gather`
    reads.
    """
    ids = sample_ids(seed, 0, min(windows, len(source)), len(source))
    same = ids if source.table is None else source.table[ids]
    return ids[np.sort(np.unique(same, return_index=True)[1])]


def videos_of(source: InMemoryWindows, ids: np.ndarray) -> np.ndarray:
    """The video of each place of the epoch's table."""
    return (ids if source.table is None else source.table[ids]) // source.starts


def graph_of(
    name: str,
    predictor: SlotPredictor,
    part: dict[str, Tensor],
    present: Tensor,
    context: GraphContext,
    config: GraphConfig | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and raw scores of a batch, float32 arrays (B, S, S)."""
    history = part["slots"][:, : predictor.config.history_frames]
    keys = dataclasses.replace(context, sample=part["sample"])
    graph = estimate(
        graph_config(name, config), predictor, history, present, context=keys, truth=part
    )
    return graph.adjacency.float().cpu().numpy(), graph.scores.float().cpu().numpy()


def summary_graphs(source: InMemoryWindows, videos: np.ndarray, name: str, seed: int) -> np.ndarray:
    """Raw scores (V, S, S) of some videos by `summary:METHOD`, frames a model step apart."""
    method, lag = name.removeprefix("summary:"), int(source.steps[1])
    return np.stack(
        [discovery.summary_graph(source.video(v), method, lag=lag, seed=seed) for v in videos]
    )


def summary_of(scores: np.ndarray, present: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and raw scores of windows, float32 arrays (B, S, S), from the scores of their videos."""
    raw = torch.from_numpy(scores).to(present.device) * pairs(present)
    return calibrate(
        raw, torch.full((), discovery.TAU, device=present.device), present
    ).cpu().numpy(), raw.cpu().numpy()


def present_slots(predictor: SlotPredictor, part: dict[str, Tensor]) -> Tensor:
    """(B, S) bool: the slot holds an object at the last history frame, the moment from which all is predicted."""
    return part["present"][:, predictor.config.history_frames - 1]


def plain(value: Any) -> float | None:
    """A number that JSON has: nan becomes None."""
    return None if math.isnan(float(value)) else round(float(value), 6)


def show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
