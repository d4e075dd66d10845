"""Counterfactual rollouts against exact re-simulation: is what a removal does what the simulator says, and only where it says so?

    videos with counterfactual truth ──each rule──> worlds ──┬─ probe ──> errors of position and slot, by who is affected
                                                             ├─ diverged, or not, against the slots that truly differ
                                                             └─ events.Reader ──> collisions against the true world's

Frames after the model's first history, up to the last shown. *Affected*: the object is more than EFFECT radii from where it is in the
factual world; *unaffected*: its slot is the factual one to the bit. What lies between is in neither. Rows `truth` (the error of the probe)
and `oracle` (true divergence, the predictor's values) bound what a rule can reach; `factual` and `free` are what it must beat.
Rows that read labels: oracle, contacts, shuffled, distance, extrapolated_distance; the last four know the true counterfactual world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.causal import counterfactual_rollout
from cjepa_dist.causal.counterfactual_rollout import AtFrames, Block, ByGraph, Paired, Reached
from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import SHOWN
from cjepa_dist.config.schema import GraphConfig
from cjepa_dist.data.counterfactual_worlds import true_worlds
from cjepa_dist.data.format.dtypes import widen
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import bootstrap
from cjepa_dist.evaluation.event_decoder import EPISODE, EventDecoder, slot_object
from cjepa_dist.evaluation.graphs import graph_config
from cjepa_dist.evaluation.world_model import FUTURE, Table, errors, means
from cjepa_dist.runtime.device import native_precision
from cjepa_dist.tasks.world_model import WorldModelTask

RULES = (
    "truth", "oracle", "factual", "free", "paired", "interventional:empty", "attention_rollout", "distance", "extrapolated_distance",
    "contacts", "shuffled",
)  # fmt: skip
CLASSES = ("affected", "unaffected")
SINCE = {
    "1-5": (0, 5),
    "6-10": (5, 10),
    "11-20": (10, 20),
    "21-40": (20, 40),
    "41-": (40, SHOWN),
}  # frames since true divergence
EFFECT = 0.25  # of a radius
COUNTS = ("divergence", "collisions", "changed")


@dataclass(frozen=True)
class Scenes:
    """Some videos and their W worlds; `slots` (V, T, S, D) are the observed frames and the predictor's future."""

    samples: list[Sample]
    slots: Tensor
    video: Tensor  # (W,) index of the world's video
    removed: Tensor  # (W,) slot
    worlds: list[dict[str, np.ndarray]]  # the truth's worlds.npz by video

    @cached_property
    def true(self) -> dict[str, Tensor]:
        """Of every world: slots (W, T, S, D), diverged (W, S), position and factual (W, T, S, 2), present (W, T, S), counts of contacts."""
        found = {
            "slots": torch.from_numpy(np.concatenate([widen(w["slots"]) for w in self.worlds])),
            "diverged": torch.from_numpy(
                np.concatenate([w["diverged"] for w in self.worlds]).astype(np.int64)
            ),
        }
        truths = [sample.truth or {} for sample in self.samples]
        for name in ("position", "present"):
            found[name] = torch.from_numpy(
                np.concatenate([t[f"counterfactual_{name}"] for t in truths])
            )
        found["factual"] = torch.from_numpy(np.stack([t["position"] for t in truths]))[
            self.video.cpu()
        ]
        shape = found["present"].shape
        found["factual_contacts"] = torch.from_numpy(
            np.stack([touched(t["contacts"], shape[1:]) for t in truths])
        )[self.video.cpu()]
        rows = [t["counterfactual_contacts"] for t in truths]
        each = [
            touched(r[r[:, 0] == w, 1:], shape[1:])
            for r, world in zip(rows, self.worlds)
            for w in range(len(world["removed"]))
        ]
        found["contacts"] = torch.from_numpy(np.stack(each))
        return {name: value.to(self.slots.device) for name, value in found.items()}


def touched(rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Rows (frame, i, j) -> (T, S, S) int16: how often each pair has touched up to each frame."""
    table = np.zeros((*shape, shape[-1]), np.int16)
    frame, i, j = rows[rows[:, 0] < shape[0]].astype(np.int64).T
    table[frame, i, j] = table[frame, j, i] = 1
    return table.cumsum(0, dtype=np.int16)


class Study:
    """What it takes to roll out by each rule, and to measure it."""

    def __init__(
        self, task: WorldModelTask, reader: EventDecoder, config: GraphConfig, seed: int
    ) -> None:
        self.task, self.reader, self.config, self.seed = task.eval(), reader, config, seed
        self.device, self.skip = task.sigma2.device, task.config.frameskip
        self.span = task.config.predictor.history_frames * self.skip
        self.empty = reader.empty.to(self.device)

    def scenes(self, data: str | Path, split: str, videos: int, batch: int) -> Iterator[Scenes]:
        """The videos that have worlds in the truth, `batch` at a time. UserError where the split has none."""
        waiting: list[Sample] = []
        for sample in read_split(data, split, videos=min(videos, Manifest.load(data).count(split))):
            true = sample.truth or {}
            if "counterfactual_slots" not in true:
                raise UserError(
                    f"split {split!r} of {data}, key {sample.key}: no counterfactual truth; simulate with counterfactual_splits"
                )
            if len(true["counterfactual_removed"]):
                waiting.append(sample)
            if len(waiting) == batch:
                yield self.group(waiting)
                waiting = []
        if waiting:
            yield self.group(waiting)

    def group(self, samples: list[Sample]) -> Scenes:
        worlds = [
            true_worlds(s, [int(slot) for slot in (s.truth or {})["counterfactual_removed"]])
            for s in samples
        ]
        sizes = [len(world["removed"]) for world in worlds]
        frames = torch.from_numpy(np.stack([widen(np.asarray(s.slots)) for s in samples])).to(
            self.device
        )
        slots = torch.cat([frames, self.task.predictor.rollout(frames, FUTURE, self.skip)], dim=1)
        removed = torch.from_numpy(
            np.concatenate([world["removed"] for world in worlds]).astype(np.int64)
        )
        video = torch.arange(len(samples)).repeat_interleave(torch.tensor(sizes))
        return Scenes(samples, slots, video.to(self.device), removed.to(self.device), worlds)

    def roll(self, rule: str, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Worlds (W, T, S, D) and divergence (W, S) by a rule of RULES, any graph estimator, or `paired:4`: tau x 4."""
        if rule == "truth":
            return scenes.true["slots"], scenes.true["diverged"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=native_precision() == "bf16"):
            paired = rule.startswith("paired")
            expected = (
                counterfactual_rollout.expected(self.task.predictor, scenes.slots, self.skip)
                if paired
                else scenes.slots
            )
            return counterfactual_rollout.without(
                self.task.predictor, scenes.slots, expected, scenes.video, scenes.removed, self.rule(rule, scenes),
                frameskip=self.skip, empty=self.empty,
            )  # fmt: skip

    def rule(self, name: str, scenes: Scenes) -> Reached:
        true, context = (
            scenes.true,
            dataclasses.replace(self.task.graph_context(scenes.video), seed=self.seed),
        )
        if name == "oracle":
            return AtFrames(true["diverged"], entered=True)
        if name in ("free", "factual"):
            return AtFrames(
                torch.full_like(true["diverged"], 0 if name == "free" else scenes.slots.shape[1])
            )
        if name.startswith("paired"):
            factor = float(name.partition(":")[2] or counterfactual_rollout.FACTOR)
            return Paired(context.sigma2, factor * context.tau)
        graph = graph_config("oracle" if name == "contacts" else name, self.config)
        if "distance" in name:  # the distance at which objects of the train split touch
            graph = dataclasses.replace(graph, tau=1 / self.reader.reach)
        return ByGraph(
            self.task.predictor,
            graph,
            context,
            self.empty,
            lambda block, factual: self.labels(scenes, block, factual),
        )

    def labels(self, scenes: Scenes, block: Block, factual: bool) -> dict[str, Tensor]:
        """Truth of the block's windows, (W K, ...), as `ResidentWindows` names it: in the factual or in the true counterfactual world."""
        true, config = scenes.true, self.task.config.predictor
        position, contacts = (
            ("factual", "factual_contacts") if factual else ("position", "contacts")
        )
        offset = torch.arange(self.skip, device=self.device)
        steps = (
            torch.arange(config.history_frames + config.pred_frames, device=self.device) * self.skip
        )
        frames = (block.start - self.span + offset[:, None] + steps).clamp(
            max=scenes.slots.shape[1] - 1
        )  # (K, T_h + T_p)
        rows = block.rows[:, None]
        second = frames[:, min(1, config.history_frames - 1)]
        contact = true[contacts][rows, frames[:, -1]] != true[contacts][rows, second]
        return {
            "position": true[position][rows[..., None], frames].flatten(0, 1),
            "contact": contact.flatten(0, 1),
        }

    def classes(self, scenes: Scenes) -> dict[str, Tensor]:
        """CLASSES -> (W, F, S) bool: in view in the true world, at frames `span` .. SHOWN - 1, and not the removed object."""
        true = {
            name: value[:, self.span : SHOWN]
            for name, value in scenes.true.items()
            if name != "diverged"
        }
        frame = torch.arange(self.span, SHOWN, device=self.device)[None, :, None]
        effect = EFFECT * float((scenes.samples[0].truth or {})["radius"])
        moved = (true["position"] - true["factual"]).norm(dim=-1) > effect
        same = frame < scenes.true["diverged"][:, None]
        return {"affected": true["present"] & moved & ~same, "unaffected": true["present"] & same}

    def counts(self, scenes: Scenes, worlds: Tensor, diverged: Tensor) -> np.ndarray:
        """(V, 3, 3) of (right, found, true) by video: slots that diverge in view; collisions; pairs whose collision came or went."""
        table = np.zeros((len(scenes.samples), len(COUNTS), 3))
        true, place = scenes.true, 0
        others = torch.arange(worlds.shape[2], device=self.device) != scenes.removed[:, None]
        said, is_so = diverged < SHOWN, true["diverged"] < SHOWN
        held = true["present"][:, :SHOWN].any(1) & others
        np.add.at(table[:, 0], scenes.video.cpu().numpy(), torch.stack(
            [(said & is_so & held).sum(1), (said & held).sum(1), (is_so & held).sum(1)], dim=1).cpu().double().numpy(),
        )  # fmt: skip
        arrays = {
            name: true[name].cpu().numpy() for name in ("contacts", "factual_contacts", "present")
        }
        for v, (sample, world) in enumerate(zip(scenes.samples, scenes.worlds)):
            held_by, objects = slot_object(sample), questions.objects(sample.annotation or {})
            slot_of = {int(o): s for s, o in enumerate(held_by) if o >= 0}
            for slot in world["removed"].tolist():
                decoded = self.reader.history(
                    worlds[place, :SHOWN].cpu().numpy(), held_by, objects, int(held_by[slot])
                ).collisions
                found = {(*sorted((slot_of[c.a], slot_of[c.b])), c.frame) for c in decoded}
                wanted = episodes(arrays["contacts"][place], arrays["present"][place])
                before = {
                    c[:2]
                    for c in episodes(
                        arrays["factual_contacts"][place], (sample.truth or {})["present"]
                    )
                    if slot not in c[:2]
                }
                hits = sum(
                    any(f[:2] == c[:2] and abs(f[2] - c[2]) <= EPISODE for f in found)
                    for c in wanted
                )
                table[v, 1] += hits, len(found), len(wanted)
                pairs, now = {c[:2] for c in found}, {c[:2] for c in wanted}
                changed = before ^ now
                table[v, 2] += (
                    sum((pair in pairs) == (pair in now) for pair in changed),
                    len(changed),
                    len(changed),
                )
                place += 1
        return table


def episodes(contacts: np.ndarray, present: np.ndarray) -> set[tuple[int, int, int]]:
    """Touches so far (T, S, S) and who is in view (T, S) -> (i, j, first frame) of collisions in the shown frames, both in view."""
    new = np.diff(contacts[:SHOWN], axis=0, prepend=0) > 0
    found = set()
    for i, j in np.argwhere(np.triu(new.any(0))).tolist():
        frames = np.flatnonzero(new[:, i, j])
        for first in frames[np.diff(frames, prepend=-1 - EPISODE) > EPISODE].tolist():
            if present[first, i] and present[first, j]:
                found.add((i, j, first))
    return found


@torch.no_grad()
def evaluate_counterfactual(
    study: Study,
    data: str | Path,
    split: str,
    rules: Sequence[str],
    *,
    videos: int,
    batch: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The table: {rule: {affected, unaffected: {column: errors}, gap_closed, divergence, collisions, changed}}, with 95 % intervals.

    `gap_closed`: (factual - rule) / (factual - oracle), by position error on affected objects. `divergence` and `collisions`: precision,
    recall, F1; `changed`: share of the pairs whose collision came or went that are told right. Intervals: bootstrap over videos.
    """
    rules = list(dict.fromkeys(["factual", "oracle", *rules]))
    table, counted, seen = Table(rules, CLASSES, ("mean", *SINCE)), {rule: [] for rule in rules}, 0  # type: ignore[var-annotated]
    for scenes in study.scenes(data, split, videos, batch):
        classes, video = study.classes(scenes), seen + scenes.video.cpu().numpy()
        since = (
            torch.arange(study.span, SHOWN, device=study.device)[None, :, None]
            - scenes.true["diverged"][:, None]
        )
        masks = {name: (first <= since) & (since < end) for name, (first, end) in SINCE.items()}
        for rule in rules:
            worlds, diverged = study.roll(rule, scenes)
            counted[rule].append(study.counts(scenes, worlds, diverged))
            shown = slice(study.span, SHOWN)
            found = errors(
                worlds[:, shown].cpu(),
                scenes.true["slots"][:, shown].cpu(),
                scenes.true["position"][:, shown].cpu(),
                study.reader.probe,
            )
            table.add(
                video, rule, "mean", found, {name: mask.cpu() for name, mask in classes.items()}
            )
            for name, mask in masks.items():
                table.add(
                    video, rule, name, found, {k: (m & mask).cpu() for k, m in classes.items()}
                )
        seen += len(scenes.samples)
    if not seen:
        raise UserError(
            f"split {split!r} of {data}: no counterfactual world in {videos or 'all'} videos"
        )
    result: dict[str, Any] = table.summary(position=True, draws=draws, seed=seed)
    values = np.stack([table.rows[v] for v in sorted(table.rows)])
    point, (low, high) = (
        gap_closed(values, rules),
        bootstrap(values, lambda drawn: gap_closed(drawn, rules), draws, seed),
    )
    for r, rule in enumerate(rules):
        result[rule]["gap_closed"] = interval(point[r], low[r], high[r])
        tallies = np.concatenate(counted[rule])
        scores, (under, over) = rates(tallies), bootstrap(tallies, rates, draws, seed)
        for c, name in enumerate(COUNTS):
            rows = {
                m: interval(scores[c, i], under[c, i], over[c, i])
                for i, m in enumerate(("precision", "recall", "f1"))
            }
            result[rule][name] = (
                {**rows, "true": int(tallies[:, c, 2].sum())}
                if name != "changed"
                else rows["recall"]
            )
    worlds_seen = sum(len(part) for part in counted[rules[0]])
    return {
        "videos": worlds_seen,
        "frames": [study.span, SHOWN - 1],
        "effect": EFFECT,
        "rules": result,
    }


def gap_closed(values: np.ndarray, rules: list[str]) -> np.ndarray:
    """(R,) from the table's sums by video (V, R, classes, columns, 3)."""
    place = means(values)[:, CLASSES.index("affected"), 0, 1]
    factual = place[rules.index("factual")]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (factual - place) / (factual - place[rules.index("oracle")])


def rates(tallies: np.ndarray) -> np.ndarray:
    """(V, N, 3) of (right, found, true) -> (N, 3): precision, recall, F1; nan where undefined."""
    right, found, true = tallies.sum(0).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([right / found, right / true, 2 * right / (found + true)], axis=1)


def interval(value: float, low: float, high: float) -> dict[str, float | None]:
    return {
        k: float(v) if np.isfinite(v) else None
        for k, v in (("value", value), ("low", low), ("high", high))
    }


@dataclass(frozen=True)
class Example:
    """A world for a picture: position (T, S, 2) and in view (T, S) by row, slots that truly diverged, the removed one."""

    title: str
    paths: dict[str, tuple[np.ndarray, np.ndarray]]
    diverged: np.ndarray  # (S,) frame
    removed: int


@torch.no_grad()
def examples(
    study: Study, data: str | Path, split: str, *, videos: int, batch: int, count: int
) -> list[Example]:
    """The `count` worlds with the most affected objects and frames: true, factual, and predicted by `paired` and `free`; shown frames."""
    found: list[tuple[int, Example]] = []
    for scenes in study.scenes(data, split, videos, batch):
        affected = study.classes(scenes)["affected"].sum((1, 2)).tolist()
        rolled = {
            rule: study.reader.places(study.roll(rule, scenes)[0][:, :SHOWN].cpu())
            for rule in ("paired", "free")
        }
        true = {
            name: value[:, :SHOWN].cpu().numpy()
            for name, value in scenes.true.items()
            if name in ("position", "present", "factual")
        }
        for w, (v, slot) in enumerate(zip(scenes.video.tolist(), scenes.removed.tolist())):
            truth = scenes.samples[v].truth or {}
            things = truth["slot_object"] >= 0
            paths = {"true world": (true["position"][w], true["present"][w])}
            paths["factual"] = (true["factual"][w], truth["present"][:SHOWN])
            others = things & (np.arange(len(things)) != slot)
            paths |= {name: (place[w], seen[w] & others) for name, (place, seen) in rolled.items()}
            title = f"{scenes.samples[v].key} without slot {slot}"
            found.append(
                (affected[w], Example(title, paths, scenes.true["diverged"][w].cpu().numpy(), slot))
            )
    return [example for _, example in sorted(found, key=lambda pair: -pair[0])[:count]]
