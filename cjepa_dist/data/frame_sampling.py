"""Which frames of a video a question sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import hash_array

VIDEO_FRAMES = 128


@dataclass
class FrameSampling:
    """Which frames questions see: `frames` of them, `stride` apart, the first drawn from 0 .. starts-1, or `eval_start`.

    `shuffle` puts the slots of a video in another order each time (one order for all its frames): the order says nothing anyway.
    `unnegated_until`: negated questions of samples below it are asked without their "not", see `affirmative`.
    """

    frames: int
    stride: int
    starts: int = 8
    eval_start: int | None = None
    shuffle: bool = False
    seed: int = 0
    unnegated_until: int = 0

    def check(self, folder: str | Path, total: int) -> None:
        """Raises UserError for frames that do not fit in the videos of `folder`, of `total` frames."""
        last = (self.starts - 1 if self.eval_start is None else self.eval_start) + self.stride * (
            self.frames - 1
        )
        shown = min(total, VIDEO_FRAMES)
        if (
            min(self.frames, self.stride, self.starts) < 1
            or (self.eval_start or 0) < 0
            or last >= shown
        ):
            first = f"0..{self.starts - 1}" if self.eval_start is None else str(self.eval_start)
            raise UserError(
                f"{self.frames} frames, stride {self.stride}, from start {first} end at frame {last}, but {folder} shows frames "
                f"0..{shown - 1}; take fewer frames, a smaller stride or an earlier start"
            )

    def start(self, sample: np.ndarray) -> np.ndarray:
        """First frame of each sample (n,), before the shift of predictive questions: a function of the seed and the global sample index."""
        sample = np.asarray(sample, np.int64)
        if self.eval_start is not None:
            return np.full(len(sample), self.eval_start, np.int64)
        return ((hash_array(sample, self.seed) >> np.uint64(33)) % np.uint64(self.starts)).astype(
            np.int64
        )
