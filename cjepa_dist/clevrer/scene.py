"""What a simulated world is made of and what happened in it: plain data that physics, slots, truth and questions share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRAMES = 180  # simulated; events from SHOWN on are "unseen"
SHOWN = 128  # frames of the video
TRUTH_FRAMES = 160  # frames for which slots and truth are kept

SHAPES = ("sphere", "cylinder", "cube")
MATERIALS = ("metal", "rubber")
COLORS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")


@dataclass(frozen=True)
class SceneObject:
    """One object; the triple (color, material, shape) is unique in its scene. `object_id` counts from 0."""

    object_id: int
    color: str
    material: str
    shape: str


@dataclass(frozen=True)
class Collision:
    """A contact episode of the objects a < b; `frame` is the first frame at or after the touch."""

    frame: int
    a: int
    b: int


@dataclass
class History:
    """What happened in one world, factual or counterfactual, in all FRAMES frames. n counts ALL objects of the scene: row i is object i.

    In a counterfactual world the removed object is never present, has no event, and `objects` does not list it.
    """

    objects: list[SceneObject]
    collisions: list[Collision]  # sorted by frame
    entries: dict[
        int, int
    ]  # object id -> frame at which it becomes visible (absent: visible at frame 0, or never)
    exits: dict[int, int]  # object id -> frame at which it stops being visible
    present: np.ndarray  # (FRAMES, n) bool: in view
    position: np.ndarray  # (FRAMES, n, 2) world units
    velocity: np.ndarray  # (FRAMES, n, 2) world units a video frame
