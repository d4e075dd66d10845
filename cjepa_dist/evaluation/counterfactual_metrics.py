"""Metrics of counterfactual worlds: affected objects, divergence, collisions, and the closed gap.

SceneBatch.ground_truth ──object_masks──> affected, unaffected (W, F, S)
worlds, divergence ──count_events──> (correct, predicted, true) ──> precision, recall, F1
ErrorTable ──gap_closed──> fraction of the gap between the factual world and the oracle
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.clevrer import questions
from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.removed_slots import slot_objects
from cjepa_dist.evaluation.counterfactual_scenes import SceneBatch
from cjepa_dist.evaluation.event_decoder import EPISODE_GAP, EventDecoder
from cjepa_dist.evaluation.world_model import mean_errors

OBJECT_CLASSES = ("affected", "unaffected")
AFFECTED_RADII = 0.25  # an object is affected if it moved by this many radii
EVENTS = ("divergence", "collisions", "changed_collisions")


def object_masks(batch: SceneBatch, first_frame: int) -> dict[str, Tensor]:
    """{class of objects: (W, F, S) bool}, frames `first_frame` .. VIDEO_FRAMES - 1.

    Only objects that are in view in the true world, so never the removed one.
    """
    frames = slice(first_frame, VIDEO_FRAMES)
    truth = batch.ground_truth
    present = truth["present"][:, frames]
    radius = float((batch.samples[0].truth or {})["radius"])
    distance = (truth["position"] - truth["factual_position"])[:, frames].norm(dim=-1)
    frame = torch.arange(first_frame, VIDEO_FRAMES, device=present.device)[None, :, None]
    unchanged = frame < truth["diverged"][:, None]
    return {
        "affected": present & (distance > AFFECTED_RADII * radius) & ~unchanged,
        "unaffected": present & unchanged,
    }


def count_events(
    batch: SceneBatch, worlds: Tensor, diverged: Tensor, decoder: EventDecoder
) -> np.ndarray:
    """(V, 3, 3): (correct, predicted, true) per video, of each of EVENTS.

    - divergence: slots that diverge, of those that hold an object in view
    - collisions, as decoded from `worlds` (W, T, S, D)
    - changed_collisions: pairs whose collision the removal causes or prevents
    """
    counts = np.zeros((len(batch.samples), len(EVENTS), 3))
    truth = batch.ground_truth
    slots = torch.arange(worlds.shape[2], device=worlds.device)
    counted = truth["present"][:, :VIDEO_FRAMES].any(1) & (slots != batch.removed[:, None])
    predicted = (diverged < VIDEO_FRAMES) & counted
    true = (truth["diverged"] < VIDEO_FRAMES) & counted
    totals = torch.stack([(predicted & true).sum(1), predicted.sum(1), true.sum(1)], dim=1)
    np.add.at(counts[:, 0], batch.video.cpu().numpy(), totals.cpu().double().numpy())
    names = ("contacts", "factual_contacts", "present")
    arrays = {name: truth[name].cpu().numpy() for name in names}
    removed = batch.removed.tolist()
    for w, v in enumerate(batch.video.tolist()):
        sample = batch.samples[v]
        found = decoded_collisions(decoder, sample, worlds[w, :VIDEO_FRAMES], removed[w])
        true_now = collision_episodes(arrays["contacts"][w], arrays["present"][w])
        correct = sum(
            any(f[:2] == c[:2] and abs(f[2] - c[2]) <= EPISODE_GAP for f in found) for c in true_now
        )
        counts[v, 1] += correct, len(found), len(true_now)
        factual = collision_episodes(arrays["factual_contacts"][w], (sample.truth or {})["present"])
        pairs, pairs_now = {c[:2] for c in found}, {c[:2] for c in true_now}
        changed = {c[:2] for c in factual if removed[w] not in c[:2]} ^ pairs_now
        correct = sum((pair in pairs) == (pair in pairs_now) for pair in changed)
        counts[v, 2] += correct, len(changed), len(changed)
    return counts


def decoded_collisions(
    decoder: EventDecoder, sample: Sample, world: Tensor, removed: int
) -> set[tuple[int, int, int]]:
    """(slot i < slot j, frame) of the collisions in a world (T, S, D) without slot `removed`."""
    objects = slot_objects(sample)
    slots = {int(o): slot for slot, o in enumerate(objects) if o >= 0}
    scene = questions.scene_objects(sample.annotation or {})
    history = decoder.history(world.cpu().numpy(), objects, scene, int(objects[removed]))
    pairs = ((slots[c.a], slots[c.b], c.frame) for c in history.collisions)
    return {(min(i, j), max(i, j), frame) for i, j, frame in pairs}


def collision_episodes(contacts: np.ndarray, present: np.ndarray) -> set[tuple[int, int, int]]:
    """(i, j, first frame) of the collisions in a video, both objects in view.

    `contacts` (T, S, S) counts how often a pair has touched so far; `present` (T, S) bool.
    """
    new = np.diff(contacts[:VIDEO_FRAMES], axis=0, prepend=0) > 0
    found = set()
    for i, j in np.argwhere(np.triu(new.any(0))).tolist():
        frames = np.flatnonzero(new[:, i, j])
        for first in frames[np.diff(frames, prepend=-1 - EPISODE_GAP) > EPISODE_GAP].tolist():
            if present[first, i] and present[first, j]:
                found.add((i, j, first))
    return found


def gap_closed(sums: np.ndarray, rules: list[str]) -> np.ndarray:
    """(factual - rule) / (factual - oracle) by position error on affected objects, (R,).

    `sums` (V, R, classes, columns, 3) are those of an ErrorTable.
    """
    error = mean_errors(sums)[:, OBJECT_CLASSES.index("affected"), 0, 1]
    factual = error[rules.index("factual")]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (factual - error) / (factual - error[rules.index("oracle")])


def precision_recall_f1(counts: np.ndarray) -> np.ndarray:
    """(V, N, 3) of (correct, predicted, true) -> (N, 3): precision, recall, F1; or nan.

    Pooled over the videos.
    """
    correct, predicted, true = counts.sum(0).T
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * correct / (predicted + true)
        return np.stack([correct / predicted, correct / true, f1], axis=1)


def with_interval(value: float, low: float, high: float) -> dict[str, Any]:
    """{value, low, high} for JSON: None where a number is not finite."""
    numbers = {"value": value, "low": low, "high": high}
    return {key: float(x) if np.isfinite(x) else None for key, x in numbers.items()}
