"""CLEVRER's sizes and attributes, and the plain data of a scene: its objects and its history.

The simulator, the questions and the evaluation share these types. CLEVRER's sizes stand only here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VIDEO_FRAMES = 128  # frames of the video, which a model observes
GROUND_TRUTH_FRAMES = 160  # frames with slots and ground truth: the video and 32 future frames
SIMULATED_FRAMES = 180  # frames of the simulation; events after the video are "unseen"

SHAPES = ("sphere", "cylinder", "cube")
MATERIALS = ("metal", "rubber")
COLORS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
ATTRIBUTES = {"color": COLORS, "material": MATERIALS, "shape": SHAPES}


@dataclass(frozen=True)
class SceneObject:
    """One object. Its color, material and shape together are unique in its scene.

    `object_id` counts from 0.
    """

    object_id: int
    color: str
    material: str
    shape: str


@dataclass(frozen=True)
class Collision:
    """A collision of the objects a < b; `frame` is the first frame at or after the contact."""

    frame: int
    a: int
    b: int


@dataclass
class History:
    """What happened in one world, factual or counterfactual, in T = SIMULATED_FRAMES frames.

    n is the number of ALL objects of the scene: column i is object i. In a counterfactual world the
    removed object is never present, has no event, and is not in `objects`.
    """

    objects: list[SceneObject]
    collisions: list[Collision]  # sorted by frame
    # Object id -> frame at which it comes into view. Absent: in view at frame 0, or never.
    entries: dict[int, int]
    exits: dict[int, int]  # object id -> first frame at which it is out of view again
    present: np.ndarray  # (T, n) bool: in view
    position: np.ndarray  # (T, n, 2) world units
    velocity: np.ndarray  # (T, n, 2) world units per video frame
