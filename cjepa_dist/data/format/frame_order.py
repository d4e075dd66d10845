"""How videos lie in memory: so that a window is one run of it, and a batch one gather of long runs.

frames of a video, frameskip 3:   0 1 2 3 4 5 6 7  ──order──>  0 3 6 | 1 4 7 | 2 5        frames 1 and 4: a run
"""

from __future__ import annotations

import numpy as np


def phase_order(frames: int, frameskip: int) -> np.ndarray:
    """(frames,): which frame stands at each place: those of phase (frame % frameskip) 0 first, each phase in the order of time."""
    return np.argsort(np.arange(frames) % frameskip, kind="stable")


def runs(videos: np.ndarray, run: np.dtype) -> np.ndarray:
    """All runs of videos (V, T, ...), one from each frame on: (N,) of type `run`, the bytes of so many frames; no copy.

    They overlap, and an index copies each in one piece; numpy's `take` and torch's `index_select` are slower, or copy all of them first.
    """
    frames = videos.shape[0] * videos.shape[1]
    size = videos.nbytes // frames
    return np.ndarray((frames - run.itemsize // size + 1,), run, videos, 0, (size,))
