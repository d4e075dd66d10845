"""Which frames a window has, and how a video lies in memory so that each window is one piece of it.

Frames of a video with frameskip 3, ordered by phase (frame % frameskip):

    0 1 2 3 4 5 6 7  ──phase_order──>  0 3 6 | 1 4 7 | 2 5        frames 1 and 4: one piece
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WindowSpec:
    """T_h history frames, then `horizon` times T_p predicted ones, `frameskip` video frames apart.

    A window spans `span` frames of its video, as in the released code: the last frameskip - 1 of
    them are not read.
    """

    history_frames: int
    pred_frames: int
    frameskip: int
    horizon: int = 1

    @property
    def length(self) -> int:
        """T, the frames of a window."""
        return self.history_frames + self.horizon * self.pred_frames

    @property
    def span(self) -> int:
        """Video frames that a window spans."""
        return self.length * self.frameskip

    def __str__(self) -> str:
        times = f"horizon {self.horizon} * " if self.horizon > 1 else ""
        return (
            f"(history_frames {self.history_frames} + {times}pred_frames {self.pred_frames}) "
            f"* frameskip {self.frameskip} = {self.span} frames"
        )


def phase_order(frames: int, frameskip: int) -> np.ndarray:
    """(frames,): the frame at each place in memory.

    Frames of phase 0 (frame % frameskip) come first; each phase is in the order of time.
    """
    return np.argsort(np.arange(frames) % frameskip, kind="stable")


def window_views(videos: np.ndarray, window: np.dtype) -> np.ndarray:
    """A view (N,) of type `window`, an opaque type: the bytes of a window from each frame on.

    `videos` is (V, T, ...) with its frames in `phase_order`. The elements overlap, and indexing
    copies each in one piece; numpy's `take` and torch's `index_select` are slower, or copy all of
    them first.
    """
    frames = videos.shape[0] * videos.shape[1]
    size = videos.nbytes // frames
    return np.ndarray((frames - window.itemsize // size + 1,), window, videos, 0, (size,))
