"""Counterfactual rollouts against exact re-simulation.

    videos with counterfactual truth ──each rule──> worlds without an object
        ├── position probe ──> errors of position and slot, of affected and unaffected objects
        ├── divergence     ──> against the slots that truly diverge
        └── EventDecoder   ──> collisions, against those of the true world

A rule says at which frame the removal reaches a slot. Frames after the model's first history count,
up to the end of the video. An object is *affected* if it is more than AFFECTED_RADII radii from its
position in the factual world, *unaffected* if its slot equals the factual one exactly; what is in
between is in neither class. The rules `truth` (the error of the probe) and `oracle` (true
divergence, predicted values) bound what a rule can reach; it should be better than `factual`
(nothing changes) and `free` (everything is predicted). These rules read labels: oracle, contacts,
shuffled, distance, extrapolated_distance; the last four know the true counterfactual world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import counterfactual_rollout
from cjepa_dist.causal.divergence import (
    TAU_FACTOR,
    DivergenceRule,
    GivenFramesRule,
    GraphRule,
    PairedRule,
    RolloutBlock,
)
from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.counterfactual_metrics import (
    AFFECTED_RADII,
    EVENTS,
    OBJECT_CLASSES,
    count_events,
    gap_closed,
    object_masks,
    precision_recall_f1,
    with_interval,
)
from cjepa_dist.evaluation.counterfactual_scenes import SceneBatch, make_batch, scene_batches
from cjepa_dist.evaluation.event_decoder import EventDecoder
from cjepa_dist.evaluation.graphs import graph_config
from cjepa_dist.evaluation.world_model import ErrorTable, squared_errors
from cjepa_dist.runtime.device import native_precision
from cjepa_dist.tasks.world_model import WorldModelTask

DIVERGENCE_RULES = (
    "truth",
    "oracle",
    "factual",
    "free",
    "paired",
    "interventional:empty",
    "attention_rollout",
    "distance",
    "extrapolated_distance",
    "contacts",
    "shuffled",
)
# Columns of the table: frames since the true divergence.
FRAMES_SINCE_DIVERGENCE = {
    "1-5": (0, 5),
    "6-10": (5, 10),
    "11-20": (10, 20),
    "21-40": (20, 40),
    "41-": (40, VIDEO_FRAMES),
}


class CounterfactualEvaluator:
    """Predicts worlds without an object by any rule; `decoder` and its probe read slots."""

    def __init__(
        self, task: WorldModelTask, decoder: EventDecoder, config: GraphConfig, seed: int
    ) -> None:
        self.task, self.decoder, self.config, self.seed = task.eval(), decoder, config, seed
        self.device, self.frameskip = task.sigma2.device, task.config.frameskip
        # The first frame that can be predicted.
        self.first_frame = task.config.predictor.history_frames * self.frameskip
        self.empty = decoder.empty.to(self.device)

    def batches(
        self, data: str | Path, split: str, videos: int, batch_size: int
    ) -> Iterator[SceneBatch]:
        """The videos of a split that have simulated worlds, as `scene_batches`."""
        return scene_batches(self.device, data, split, videos=videos, batch_size=batch_size)

    def predict_worlds(self, rule: str, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """Worlds (W, T, S, D) and divergence (W, S).

        `rule` is one of DIVERGENCE_RULES, a graph estimator, or `paired:4`: tau times 4.
        """
        if rule == "truth":
            return batch.ground_truth["slots"], batch.ground_truth["diverged"]
        predictor, expected = self.task.predictor, batch.slots
        with torch.autocast(self.device.type, torch.bfloat16, enabled=native_precision() == "bf16"):
            if rule.startswith("paired"):
                expected = counterfactual_rollout.predict_factual(
                    predictor, batch.slots, self.frameskip
                )
            return counterfactual_rollout.rollout_without_object(
                predictor,
                batch.slots,
                expected,
                batch.video,
                batch.removed,
                self.divergence_rule(rule, batch),
                frameskip=self.frameskip,
                empty=self.empty,
            )

    def divergence_rule(self, name: str, batch: SceneBatch) -> DivergenceRule:
        diverged = batch.ground_truth["diverged"]
        context = dataclasses.replace(self.task.graph_context(batch.video), seed=self.seed)
        if name == "oracle":
            return GivenFramesRule(diverged, entered=True)
        if name == "free":
            return GivenFramesRule(torch.full_like(diverged, 0))
        if name == "factual":
            return GivenFramesRule(torch.full_like(diverged, batch.slots.shape[1]))
        if name.startswith("paired"):
            factor = float(name.partition(":")[2] or TAU_FACTOR)
            return PairedRule(context.sigma2, factor * context.tau)
        graph = graph_config("oracle" if name == "contacts" else name, self.config)
        if "distance" in name:  # the distance at which objects of the train split touch
            graph = dataclasses.replace(graph, tau=1 / self.decoder.contact_distance)
        return GraphRule(
            self.task.predictor,
            graph,
            context,
            self.empty,
            lambda block, factual: self.window_labels(batch, block, factual),
        )

    def window_labels(
        self, batch: SceneBatch, block: RolloutBlock, factual: bool
    ) -> dict[str, Tensor]:
        """Labels of the block's windows (W K, ...), named as in `InMemoryWindows`.

        In the factual world, or in the true counterfactual one.
        """
        prefix, truth, config = (
            "factual_" if factual else "",
            batch.ground_truth,
            self.task.config.predictor,
        )
        position, contacts = truth[f"{prefix}position"], truth[f"{prefix}contacts"]
        offset = torch.arange(self.frameskip, device=self.device)
        length = config.history_frames + config.pred_frames
        steps = torch.arange(length, device=self.device) * self.frameskip
        frames = block.start - self.first_frame + offset[:, None] + steps  # (K, T_h + T_p)
        frames = frames.clamp(max=position.shape[1] - 1)
        rows = block.rows[:, None]
        second = frames[:, min(1, config.history_frames - 1)]
        contact = contacts[rows, frames[:, -1]] != contacts[rows, second]
        return {
            "position": position[rows[..., None], frames].flatten(0, 1),
            "contact": contact.flatten(0, 1),
        }


@torch.no_grad()
def evaluate_counterfactual(
    evaluator: CounterfactualEvaluator,
    data: str | Path,
    split: str,
    rules: Sequence[str],
    *,
    videos: int,
    batch_size: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """{rule: {affected, unaffected: {column: errors}, gap_closed, events...}}, with intervals.

    The events are those of `counterfactual_metrics.EVENTS`: precision, recall and F1 of divergence
    and of collisions, and the fraction of the changed collisions that is predicted correctly.
    Intervals are 95 %, from a bootstrap over videos.
    """
    rules = list(dict.fromkeys(["factual", "oracle", *rules]))
    table = ErrorTable(rules, OBJECT_CLASSES, ("mean", *FRAMES_SINCE_DIVERGENCE))
    events: dict[str, list[np.ndarray]] = {rule: [] for rule in rules}
    count = 0  # videos so far
    frames = slice(evaluator.first_frame, VIDEO_FRAMES)
    for batch in evaluator.batches(data, split, videos, batch_size):
        truth, video = batch.ground_truth, count + batch.video.cpu().numpy()
        masks = object_masks(batch, evaluator.first_frame)
        frame = torch.arange(frames.start, frames.stop, device=evaluator.device)[None, :, None]
        since = frame - truth["diverged"][:, None]
        columns = {"mean": {name: mask.cpu() for name, mask in masks.items()}}
        for column, (first, end) in FRAMES_SINCE_DIVERGENCE.items():
            in_column = (first <= since) & (since < end)
            columns[column] = {name: (mask & in_column).cpu() for name, mask in masks.items()}
        for rule in rules:
            worlds, diverged = evaluator.predict_worlds(rule, batch)
            events[rule].append(count_events(batch, worlds, diverged, evaluator.decoder))
            errors = squared_errors(
                worlds[:, frames].cpu(),
                truth["slots"][:, frames].cpu(),
                truth["position"][:, frames].cpu(),
                evaluator.decoder.probe,
            )
            for column, column_masks in columns.items():
                table.add(video, rule, column, errors, column_masks)
        count += len(batch.samples)
    if not count:
        raise UserError(
            f"split {split!r} of {data}: no counterfactual world in {videos or 'all'} videos"
        )
    result: dict[str, Any] = table.summary(position=True, draws=draws, seed=seed)
    sums = np.stack([table.sums[v] for v in sorted(table.sums)])
    gap = gap_closed(sums, rules)
    gap_low, gap_high = bootstrap(sums, lambda drawn: gap_closed(drawn, rules), draws, seed)
    for r, rule in enumerate(rules):
        result[rule]["gap_closed"] = with_interval(gap[r], gap_low[r], gap_high[r])
        counts = np.concatenate(events[rule])
        scores = precision_recall_f1(counts)
        low, high = bootstrap(counts, precision_recall_f1, draws, seed)
        for e, event in enumerate(EVENTS):
            metrics = {
                name: with_interval(scores[e, m], low[e, m], high[e, m])
                for m, name in enumerate(("precision", "recall", "f1"))
            }
            result[rule][event] = {**metrics, "true": int(counts[:, e, 2].sum())}
        result[rule]["changed_collisions"] = result[rule]["changed_collisions"]["recall"]
    return {
        "videos": count,
        "frames": [evaluator.first_frame, VIDEO_FRAMES - 1],
        "affected_radii": AFFECTED_RADII,
        "rules": result,
    }


@dataclass(frozen=True)
class ExampleWorld:
    """A world for a figure: its object paths by row of the figure."""

    title: str
    paths: dict[str, tuple[np.ndarray, np.ndarray]]  # position (T, S, 2), in view (T, S)
    diverged: np.ndarray  # (S,) frame at which the slots truly diverge
    removed: int  # slot


@torch.no_grad()
def most_affected_worlds(
    evaluator: CounterfactualEvaluator,
    data: str | Path,
    split: str,
    *,
    videos: int,
    batch_size: int,
    count: int,
) -> list[ExampleWorld]:
    """The `count` worlds with the most affected objects and frames.

    With the paths of the true and the factual world, and of those predicted by `paired` and `free`.
    """
    best: list[tuple[int, Sample, int]] = []  # affected, the video, the number of its world
    for batch in evaluator.batches(data, split, videos, batch_size):
        affected = object_masks(batch, evaluator.first_frame)["affected"].sum((1, 2)).tolist()
        numbers = [w for worlds in batch.worlds for w in range(len(worlds["removed"]))]
        samples = [batch.samples[v] for v in batch.video.tolist()]
        best += zip(affected, samples, numbers, strict=True)
        best = sorted(best, key=lambda world: -world[0])[:count]
    chosen = list({sample.key: sample for _, sample, _ in best}.values())
    batch = make_batch(evaluator.device, chosen)
    first_world = {
        sample.key: int((batch.video < v).sum()) for v, sample in enumerate(batch.samples)
    }
    predicted = {}
    for rule in ("paired", "free"):
        worlds, _ = evaluator.predict_worlds(rule, batch)
        predicted[rule] = evaluator.decoder.slot_positions(worlds.cpu())
    names = ("position", "present", "factual_position", "diverged")
    truth = {name: batch.ground_truth[name].cpu().numpy() for name in names}
    examples = []
    for _, sample, number in best:
        w = first_world[sample.key] + number
        slot, video = int(batch.removed[w]), sample.truth or {}
        holds_object = video["slot_object"] >= 0
        holds_object &= np.arange(len(holds_object)) != slot
        paths = {
            "true world": (truth["position"][w], truth["present"][w]),
            "factual": (truth["factual_position"][w], video["present"]),
        }
        paths = {
            name: (position[:VIDEO_FRAMES], present[:VIDEO_FRAMES])
            for name, (position, present) in paths.items()
        }
        paths |= {
            name: (position[w], present[w] & holds_object)
            for name, (position, present) in predicted.items()
        }
        title = f"{sample.key} without slot {slot}"
        examples.append(ExampleWorld(title, paths, truth["diverged"][w], slot))
    return examples
