"""Detects whether a slot holds an object in view, from the slots alone.

    some videos ──the half of the slots that moves least──> vectors that many share ──> empty (P, D)
    a slot in a frame ──distance to the nearest empty vector──> present

Background and empty slots look the same in many videos. The slot of an object does not, even at
rest, because it encodes the position of the object.
"""

from __future__ import annotations

import numpy as np

MIN_VIDEO_SHARE = 0.2  # of the videos must have a vector for it to count as empty
MAX_DISTANCE = 0.1  # to an empty vector, in units of the slots' variance


class PresenceDetector:
    """`empty` (P, D): vectors of slots without an object; `variance`: the mean of the slots'."""

    def __init__(self, videos: np.ndarray) -> None:
        """`videos` (V, F, S, D) float32, a few hundred."""
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
        self.empty = np.array(found).reshape(-1, videos.shape[-1])

    def detect(self, slots: np.ndarray) -> np.ndarray:
        """(T, S, D) -> (T, S) bool; all True if no empty vector is known."""
        if not len(self.empty):
            return np.ones(slots.shape[:2], bool)
        nearest = np.min([((slots - vector) ** 2).mean(-1) for vector in self.empty], axis=0)
        return nearest > MAX_DISTANCE * self.variance


def mean_squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean squared differences (N, M) of vectors (N, D), (M, D)."""
    return np.maximum(0.0, (a**2).mean(1)[:, None] + (b**2).mean(1) - 2 * (a @ b.T) / a.shape[1])
