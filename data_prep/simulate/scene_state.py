"""What a simulated encoder sees of a scene: its objects, the slots that hold them, their motion.

position (T, n, 2) ──objects_to_slots──> (T, S, 2); slot_object (S,) is the object in each slot
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import SceneObject


@dataclass(frozen=True)
class SceneState:
    """A scene of n objects in S slots over T frames. World units: the view is [-1, 1]^2."""

    objects: list[SceneObject]  # n
    slot_object: np.ndarray  # (S,) index into `objects`, -1 = the slot holds none
    background: np.ndarray  # (S,) bool: the slot of the background
    position: np.ndarray  # (T, n, 2)
    angle: np.ndarray  # (T, n) in rad
    present: np.ndarray  # (T, n) bool: in view

    @classmethod
    def without_objects(cls) -> SceneState:
        """One frame of one slot that holds nothing."""
        return cls(
            objects=[],
            slot_object=np.array([-1]),
            background=np.zeros(1, bool),
            position=np.zeros((1, 0, 2)),
            angle=np.zeros((1, 0)),
            present=np.zeros((1, 0), bool),
        )


def objects_to_slots(array: np.ndarray, slot_object: np.ndarray) -> np.ndarray:
    """(T, n, ...) by object -> (T, S, ...) by slot, 0 for slots without an object."""
    out = np.zeros((len(array), len(slot_object), *array.shape[2:]), array.dtype)
    held = slot_object >= 0
    out[:, held] = array[:, slot_object[held]]
    return out


def slot_by_object(slot_object: np.ndarray) -> dict[int, int]:
    """Object id -> slot."""
    return {int(o): s for s, o in enumerate(slot_object.tolist()) if o >= 0}
