"""Finds the annotated object of each slot, without labelled slots.

    slots of a video ──linear probe──> [position, color, material, shape]
      ──squared errors──> costs ──Hungarian assignment──> a slot for each object
      └── refit the probe on the assigned slots, until the assignment stays the same ──┘

The first probe needs no labels either. It regresses the mean over all objects of a scene on each
slot of the scene. The other objects are independent of this slot's object, so E[mean | slot] = own
/ K + constant: the directions are right, only too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cjepa_dist.clevrer.checks import annotation_faults
from cjepa_dist.clevrer.scene import ATTRIBUTES
from cjepa_dist.errors import UserError

TARGET_DIM = 2 + sum(len(values) for values in ATTRIBUTES.values())
MAX_ROUNDS = 30  # about five are enough
RIDGE = 1e-3
MAX_UNEXPLAINED = 0.5  # share of the variance of the targets


@dataclass
class AnnotatedScene:
    """The objects of an annotation.

    `object_ids` (K,); `targets` (F, K, TARGET_DIM) float32: position and one-hot attributes;
    `visible` (F, K) bool: in view.
    """

    object_ids: np.ndarray
    targets: np.ndarray
    visible: np.ndarray

    @classmethod
    def from_annotation(cls, annotation: dict[str, Any]) -> AnnotatedScene | None:
        """From CLEVRER's JSON; None if it has no objects or no trajectory.

        UserError, naming scene and field, for an annotation that is not as CLEVRER's.
        """
        if faults := annotation_faults(annotation):
            scene = annotation.get("scene_index")
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise UserError(
                f"the annotation of scene {scene} is not sound: {faults[0]}{more};"
                " import it again, with skip_bad=true it is left out"
            )
        objects, frames = (
            annotation.get("object_property") or [],
            annotation.get("motion_trajectory") or [],
        )
        if not objects or not frames:
            return None
        object_ids = np.array([o["object_id"] for o in objects])
        place = {int(o): k for k, o in enumerate(object_ids)}
        one_hot = [
            np.concatenate(
                [np.eye(len(values))[values.index(o[name])] for name, values in ATTRIBUTES.items()]
            )
            for o in objects
        ]
        targets = np.zeros((len(frames), len(objects), TARGET_DIM), np.float32)
        targets[:, :, 2:] = one_hot
        visible = np.zeros(targets.shape[:2], bool)
        for f, frame in enumerate(frames):
            for o in frame["objects"]:
                targets[f, place[o["object_id"]], :2] = o["location"][:2]
                visible[f, place[o["object_id"]]] = o["inside_camera_view"]
        return cls(object_ids, targets, visible)

    def at_frames(self, frames: np.ndarray) -> AnnotatedScene:
        """The scene at some frames, without those after its last one."""
        frames = frames[frames < len(self.visible)]
        return AnnotatedScene(self.object_ids, self.targets[frames], self.visible[frames])


@dataclass
class ObjectProbe:
    """A linear map from slots to targets: `weight` (D + 1, TARGET_DIM).

    `total_variance` (TARGET_DIM,) is the variance of the targets, `residual_variance` that of the
    errors.
    """

    weight: np.ndarray
    residual_variance: np.ndarray
    total_variance: np.ndarray

    def predict(self, slots: np.ndarray) -> np.ndarray:
        """(..., D) -> (..., TARGET_DIM)."""
        return slots @ self.weight[:-1] + self.weight[-1]

    def assign(self, slots: np.ndarray, scene: AnnotatedScene, unexplained: float) -> np.ndarray:
        """Slots (F, S, D) at the scene's frames -> slot of each object (K,), -1 for none.

        An object has no slot if its error is more than `unexplained` of the targets' variance; the
        slot of another object gives about 2. Errors are medians over the frames in which the object
        is in view, because at the edge of the view and behind others a slot is a mixture.
        """
        errors = (
            self.predict(slots)[:, :, None] - scene.targets[:, None]
        ) ** 2  # (F, S, K, TARGET_DIM)
        candidates = np.flatnonzero(scene.visible.any(0))
        if not len(candidates):
            return np.full(len(scene.object_ids), -1)
        cost, share = (
            np.stack(
                [
                    np.median((errors[scene.visible[:, k], :, k] / unit).mean(-1), axis=0)
                    for k in candidates
                ]
            )
            for unit in (self.residual_variance, self.total_variance)
        )
        rows, columns = linear_sum_assignment(cost)
        slot = np.full(len(scene.object_ids), -1)
        slot[candidates[rows]] = np.where(share[rows, columns] <= unexplained, columns, -1)
        return slot


def fit_probe(videos: list[tuple[np.ndarray, AnnotatedScene]]) -> tuple[ObjectProbe, int]:
    """Fit the probe on videos (slots (F, S, D) float32, scene at the same frames).

    At first every object has a slot. When the assignment is stable, objects that no slot explains
    are left out. Returns the probe and the number of rounds.
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
                for (slots, scene), slot in zip(videos, found, strict=True)
                for k in np.flatnonzero(slot >= 0)
            ]
            if not pairs:
                raise UserError(
                    "no slot fits an object of the annotations:"
                    " are they of the same scenes as the slots?"
                )
            inputs = np.concatenate([slots[scene.visible[:, k], s] for slots, scene, k, s in pairs])
            probe = ridge_regression(
                inputs,
                np.concatenate([scene.targets[scene.visible[:, k], k] for _, scene, k, _ in pairs]),
            )
    return probe, rounds


def initial_probe(videos: list[tuple[np.ndarray, AnnotatedScene]]) -> ObjectProbe:
    """The probe for the mean of a scene's objects, scaled to the variance of single objects."""
    if not any(scene.visible.any() for _, scene in videos):
        raise UserError("no object of the annotations is in view in the frames that are used")
    inputs, means, single = [], [], []
    for slots, scene in videos:
        frames = scene.visible.any(1)
        mean = (scene.targets * scene.visible[:, :, None]).sum(1)[frames] / scene.visible.sum(1)[
            frames, None
        ]
        inputs.append(slots[frames].reshape(-1, slots.shape[-1]))
        means.append(np.repeat(mean, slots.shape[1], axis=0))
        single.append(scene.targets[scene.visible])
    x, own = np.concatenate(inputs), np.concatenate(single)
    probe = ridge_regression(x, np.concatenate(means))
    read = probe.predict(x)
    scale = own.std(0) / np.maximum(read.std(0), 1e-9)
    probe.weight *= scale
    probe.weight[-1] += own.mean(0) - read.mean(0) * scale
    probe.residual_variance = probe.total_variance = np.maximum(own.var(0), 1e-6)
    return probe


def ridge_regression(x: np.ndarray, y: np.ndarray) -> ObjectProbe:
    """Ridge regression with an intercept, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    centre, mean = x.mean(0), y.mean(0)
    x, y = x - centre, y - mean
    total_variance = np.maximum((y**2).mean(0), 1e-6)
    gram = x.T @ x
    weight = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)
    residual_variance = np.maximum(((y - x @ weight) ** 2).mean(0), 1e-6)
    augmented = np.concatenate([weight, (mean - centre @ weight)[None]])
    return ObjectProbe(
        augmented.astype(np.float32),
        residual_variance.astype(np.float32),
        total_variance.astype(np.float32),
    )
