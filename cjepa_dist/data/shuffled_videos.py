"""The blind control: every question sees the slots of another video."""

from __future__ import annotations

import numpy as np

from cjepa_dist.errors import UserError


def other_videos(count: int, seed: int) -> np.ndarray:
    """(V,): another video for each, every video once: the next one in a shuffled ring."""
    if count < 2:
        raise UserError(
            "blind=true gives each question the slots of another video; the split has only one"
        )
    ring = np.random.default_rng([seed, 0xB11D]).permutation(count)
    other = np.empty(count, np.int64)
    other[ring] = np.roll(ring, -1)
    return other


def other_worlds(video: np.ndarray, seed: int) -> np.ndarray:
    """(W,): for each world a world of another video, the next in a shuffled ring of videos.

    `video` (W,): the video of each world.
    """
    videos, first, count = np.unique(video, return_index=True, return_counts=True)
    place = np.repeat(other_videos(len(videos), seed), count)
    return first[place] + (np.arange(len(video)) - np.repeat(first, count)) % count[place]
