"""Which object of a CLEVRER annotation a slot holds, without labelled slots.

    slots x of a video ──linear probe W──> [position, colour, material, shape] ──least cost, Hungarian──> an object to a slot
            └───────────────────────────── refit W on what was assigned, until nothing changes ──────────────────┘

The start needs no label either. Other objects of a scene say nothing about this one, so regressing the mean over the scene's objects on
each of its slots gives the right directions, only smaller: E[mean | slot] = own / K + what is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cjepa_dist.clevrer.scene import COLORS, MATERIALS, SHAPES
from cjepa_dist.errors import UserError

ATTRIBUTES = (("color", COLORS), ("material", MATERIALS), ("shape", SHAPES))
TARGET_DIM = 2 + sum(len(values) for _, values in ATTRIBUTES)
MAX_ROUNDS = 30  # a handful are enough
RIDGE = 1e-3
MAX_UNEXPLAINED = 0.5  # part of the targets' spread


@dataclass
class AnnotatedScene:
    """What an annotation says: `identity` (K,) object ids, `targets` (F, K, TARGETS) float32, `seen` (F, K) bool: in view."""

    identity: np.ndarray
    targets: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, annotation: dict[str, Any]) -> AnnotatedScene | None:
        """From CLEVRER's JSON; None if it has no objects or no trajectory."""
        objects, frames = (
            annotation.get("object_property") or [],
            annotation.get("motion_trajectory") or [],
        )
        if not objects or not frames:
            return None
        identity = np.array([o["object_id"] for o in objects])
        place = {int(o): k for k, o in enumerate(identity)}
        one_hot = [
            np.concatenate(
                [np.eye(len(values))[values.index(o[name])] for name, values in ATTRIBUTES]
            )
            for o in objects
        ]
        targets = np.zeros((len(frames), len(objects), TARGET_DIM), np.float32)
        targets[:, :, 2:] = one_hot
        seen = np.zeros(targets.shape[:2], bool)
        for f, frame in enumerate(frames):
            for o in frame["objects"]:
                targets[f, place[o["object_id"]], :2] = o["location"][:2]
                seen[f, place[o["object_id"]]] = o["inside_camera_view"]
        return cls(identity, targets, seen)

    def at(self, frames: np.ndarray) -> AnnotatedScene:
        """The scene at some frames; those that it has not are left out."""
        frames = frames[frames < len(self.seen)]
        return AnnotatedScene(self.identity, self.targets[frames], self.seen[frames])


@dataclass
class ObjectProbe:
    """`weight` (D + 1, TARGETS); `variance` (TARGETS,) of what it leaves of the targets; `spread` (TARGETS,): their own."""

    weight: np.ndarray
    variance: np.ndarray
    spread: np.ndarray

    def read(self, slots: np.ndarray) -> np.ndarray:
        """(..., D) -> (..., TARGETS)."""
        return slots @ self.weight[:-1] + self.weight[-1]

    def assign(self, slots: np.ndarray, scene: AnnotatedScene, unexplained: float) -> np.ndarray:
        """Slots (F, S, D) at the scene's frames -> slot of each object (K,), -1 for none.

        An object that leaves more than `unexplained` of the targets' spread (another object's slot: about 2) has no slot. Errors are the
        medians over the frames in which the object is in view: at the edge of the view and behind others a slot is a mixture.
        """
        errors = (self.read(slots)[:, :, None] - scene.targets[:, None]) ** 2  # (F, S, K, TARGETS)
        visible = np.flatnonzero(scene.seen.any(0))
        cost, share = (
            np.stack(
                [
                    np.median((errors[scene.seen[:, k], :, k] / unit).mean(-1), axis=0)
                    for k in visible
                ]
            )
            for unit in (self.variance, self.spread)
        )
        rows, columns = linear_sum_assignment(cost)
        slot = np.full(len(scene.identity), -1)
        slot[visible[rows]] = np.where(share[rows, columns] <= unexplained, columns, -1)
        return slot


def fit_probe(videos: list[tuple[np.ndarray, AnnotatedScene]]) -> tuple[ObjectProbe, int]:
    """The probe of videos (slots (F, S, D) float32, what is there at the same frames), and the rounds it took.

    First every object has a slot; when that has settled, objects that no slot explains are left out.
    """
    probe, before, rounds = initial_probe(videos), None, 0
    for unexplained in (np.inf, MAX_UNEXPLAINED):
        for _ in range(MAX_ROUNDS):
            rounds += 1
            found = [probe.assign(slots, scene, unexplained) for slots, scene in videos]
            chosen = np.concatenate(found)
            if before is not None and np.array_equal(chosen, before):
                break
            before = chosen
            pairs = [
                (slots, scene, k, slot[k])
                for (slots, scene), slot in zip(videos, found)
                for k in np.flatnonzero(slot >= 0)
            ]
            if not pairs:
                raise UserError(
                    "no slot reads as an object of the annotations: are they of the same scenes as the slots?"
                )
            inputs = np.concatenate([slots[scene.seen[:, k], s] for slots, scene, k, s in pairs])
            probe = ridge_regression(
                inputs,
                np.concatenate([scene.targets[scene.seen[:, k], k] for _, scene, k, _ in pairs]),
            )
    return probe, rounds


def initial_probe(videos: list[tuple[np.ndarray, AnnotatedScene]]) -> ObjectProbe:
    """The probe for the mean of a scene's objects, stretched to the spread of single ones."""
    inputs, means, single = [], [], []
    for slots, scene in videos:
        frames = scene.seen.any(1)
        mean = (scene.targets * scene.seen[:, :, None]).sum(1)[frames] / scene.seen.sum(1)[
            frames, None
        ]
        inputs.append(slots[frames].reshape(-1, slots.shape[-1]))
        means.append(np.repeat(mean, slots.shape[1], axis=0))
        single.append(scene.targets[scene.seen])
    x, own = np.concatenate(inputs), np.concatenate(single)
    probe = ridge_regression(x, np.concatenate(means))
    read = probe.read(x)
    stretch = own.std(0) / np.maximum(read.std(0), 1e-9)
    probe.weight *= stretch
    probe.weight[-1] += own.mean(0) - read.mean(0) * stretch
    probe.variance = probe.spread = np.maximum(own.var(0), 1e-6)
    return probe


def ridge_regression(x: np.ndarray, y: np.ndarray) -> ObjectProbe:
    """Ridge regression with an intercept, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    centre, mean = x.mean(0), y.mean(0)
    x, y = x - centre, y - mean
    spread = np.maximum((y**2).mean(0), 1e-6)
    gram = x.T @ x
    weight = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)
    variance = np.maximum(((y - x @ weight) ** 2).mean(0), 1e-6)
    whole = np.concatenate([weight, (mean - centre @ weight)[None]])
    return ObjectProbe(
        whole.astype(np.float32), variance.astype(np.float32), spread.astype(np.float32)
    )
