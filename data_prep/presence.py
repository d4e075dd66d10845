"""Whether a slot holds an object in view, where nothing is known but the slots: by norm and motion.

    slots of some videos ──the still half──> vectors that many videos share: background, empty slots ──> blanks (P, D)
    a slot at a frame ──its norm, measured from the nearest blank──> present

An object's slot tells where the object is, so that no vector of one is shared by many videos; a resting one's neither.
"""

from __future__ import annotations

import numpy as np

MIN_VIDEO_SHARE = 0.2  # part of the videos that must have a vector for it to be a blank
MAX_DISTANCE = 0.1  # of the slots' variance: closer than this to a blank is that blank


class PresenceDetector:
    """`blanks` (P, D): what slots without an object look like; `variance`: mean variance of a slot's numbers."""

    def __init__(self, videos: np.ndarray) -> None:
        """`videos` (V, F, S, D) float32, some hundred of them."""
        self.variance = float(videos.reshape(-1, videos.shape[-1]).var(0).mean())
        motion = (np.diff(videos, axis=1) ** 2).mean((1, 3))  # (V, S)
        still = motion <= np.median(motion)
        video, slot = np.nonzero(still)
        vectors = videos.mean(1)[video, slot]
        found: list[np.ndarray] = []
        while len(vectors):
            near = mean_squared_distances(vectors, vectors) < MAX_DISTANCE * self.variance
            shared = [len(np.unique(video[row])) for row in near]
            best = int(np.argmax(shared))
            if shared[best] < MIN_VIDEO_SHARE * len(videos):
                break
            found.append(vectors[near[best]].mean(0))
            vectors, video = vectors[~near[best]], video[~near[best]]
        self.blanks = np.array(found).reshape(-1, videos.shape[-1])

    def of(self, slots: np.ndarray) -> np.ndarray:
        """(T, S, D) -> (T, S) bool; all True where no blank is known."""
        if not len(self.blanks):
            return np.ones(slots.shape[:2], bool)
        nearest = np.min([((slots - blank) ** 2).mean(-1) for blank in self.blanks], axis=0)
        return nearest > MAX_DISTANCE * self.variance


def mean_squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared differences (N, M) of vectors (N, D), (M, D)."""
    return np.maximum(0.0, (a**2).mean(1)[:, None] + (b**2).mean(1) - 2 * (a @ b.T) / a.shape[1])
