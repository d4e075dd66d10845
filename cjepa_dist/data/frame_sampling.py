"""Which frames of a video a question sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.random import hash_array


@dataclass
class FrameSampling:
    """Questions see `frames` frames, `stride` apart.

    The first is drawn from 0 .. starts-1, or is `eval_start`. `shuffle` puts the slots of a video
    in another order for each sample, one order for all its frames: the order of slots means
    nothing. Samples below `unnegated_until` are asked without the "not" of negated questions, see
    `question_encoding.remove_negation`.
    """

    frames: int
    stride: int
    starts: int = 8
    eval_start: int | None = None
    shuffle: bool = False
    seed: int = 0
    unnegated_until: int = 0

    def check(self, folder: str | Path, total: int) -> None:
        """Raises UserError if the frames do not fit in the videos of `folder`, `total` long."""
        last_start = self.starts - 1 if self.eval_start is None else self.eval_start
        last = last_start + self.stride * (self.frames - 1)
        visible = min(total, VIDEO_FRAMES)
        if (
            min(self.frames, self.stride, self.starts) < 1
            or (self.eval_start or 0) < 0
            or last >= visible
        ):
            first = f"0..{self.starts - 1}" if self.eval_start is None else str(self.eval_start)
            raise UserError(
                f"{self.frames} frames, stride {self.stride}, from start {first} end at frame "
                f"{last}, but {folder} shows frames 0..{visible - 1}; take fewer frames, "
                "a smaller stride or an earlier start"
            )

    def start(self, sample: np.ndarray) -> np.ndarray:
        """The first frame of each sample (n,), without the shift of predictive questions.

        A function of the seed and of the sample's index in the run.
        """
        sample = np.asarray(sample, np.int64)
        if self.eval_start is not None:
            return np.full(len(sample), self.eval_start, np.int64)
        draws = (hash_array(sample, self.seed) >> np.uint64(33)) % np.uint64(self.starts)
        return draws.astype(np.int64)
