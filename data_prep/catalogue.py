"""All videos of a source, by split and scene, checked before any of them is read.

add(split, key, shape, dtype, read) ... ──> SourceVideo ──one shape? ──> videos, faults
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.data.format.manifest_checks import MOST_SIZE, MOST_VIDEO_BYTES
from cjepa_dist.errors import UserError
from data_prep.faults import Faults

SPLIT_NAMES = {"validation": "val", "valid": "val"}  # other names of a split
SPLIT_WORDS = "train|val|valid|validation|test"
KEY_PATTERN = re.compile(
    rf"(?:.*/)?(?:video_)?(?:({SPLIT_WORDS})_)?(\d{{1,9}})(?:_pixels)?(?:\.mp4)?", re.ASCII
)
FIRST_SCENE = {"train": 0, "val": 10000, "test": 15000}  # of CLEVRER's splits
MOST_SLOTS = 64  # more are a wrong order of axes


@dataclass
class SourceVideo:
    """A video to import: `read()` gives its slots (T, S, D); `label` names it in messages.

    `shape` is what the source says of it.
    """

    split: str
    scene: int
    label: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def key(self) -> str:
        return f"video_{self.scene:05d}"


class VideoCatalogue:
    """All videos of a source, by split and scene; `faults`: what is wrong with others of them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.splits: dict[str, dict[int, SourceVideo]] = {}
        self.labels: dict[int, str] = {}
        self.faults = Faults()
        self.counted_from_zero: set[str] = set()  # splits whose keys name the split

    def add(
        self, split: str, key: Any, shape: Sequence[int], dtype: str, read: Callable[[], np.ndarray]
    ) -> SourceVideo | None:
        """Add a video and return it. `dtype` "" = not known before it is read.

        A fault is recorded, and the video left out, for a key that names no scene, a scene that is
        there already, and an array that is not (frames, slots, slot_dim) of floats.
        """
        name, label = SPLIT_NAMES.get(split, split), f"{split}/{key}"[:200]
        match = KEY_PATTERN.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            reason = f"key {str(key)[:100]!r} of split {split!r} names no scene;"
            self.faults.add(label, f"{reason} keys are like 0_pixels.mp4 or video_00000.mp4")
            return None
        scene = int(match[2])
        if match[1]:
            word = SPLIT_NAMES.get(match[1], match[1])
            if word != name:
                self.faults.add(label, f"its key names split {match[1]!r}, it is in {split!r}")
                return None
            if scene < FIRST_SCENE[word]:
                scene += FIRST_SCENE[word]
                self.counted_from_zero.add(word)
        if reason := shape_fault(tuple(shape), dtype):
            self.faults.add(label, reason, scene=scene)
            return None
        if scene in self.labels:
            twice = f"scene {scene} is there twice, as {self.labels[scene]} and as {label}"
            self.faults.add(label, f"{twice}; a scene belongs to one split", scene=scene)
            return None
        self.labels[scene] = label
        video = SourceVideo(name, scene, label, tuple(shape), read)
        self.splits.setdefault(name, {})[scene] = video
        return video

    def videos(self) -> list[SourceVideo]:
        """The videos in order of split and scene, all of one shape.

        Those of another shape than most become faults. Raises UserError if there is no video.
        """
        found = [video for videos in self.splits.values() for _, video in sorted(videos.items())]
        if not found and self.faults.entries:
            raise self.faults.error(self.source)
        if not found:
            raise UserError(f"{self.source} holds no videos")
        counts = Counter(video.shape for video in found)
        common = counts.most_common(1)[0][0]
        for video in found:
            if video.shape != common:
                others = f"those of {counts[common]} others are {common}; all videos must agree"
                reason = f"slots are {video.shape}, {others}"
                self.faults.add(f"{video.label}, {video.key}", reason, scene=video.scene)
        return [video for video in found if video.shape == common]

    def describe(self) -> str:
        """Lines for the user: how shapes and keys were understood."""
        shape = next(v.shape for videos in self.splits.values() for v in videos.values())
        lines = [f"videos of {shape[0]} frames, {shape[1]} slots, {shape[2]} numbers a slot"]
        for split in sorted(self.counted_from_zero):
            first = FIRST_SCENE[split]
            lines.append(f"keys of {split} count from 0: their scenes are {first} + number")
        return "\n".join(lines)


def shape_fault(shape: tuple[int, ...], dtype: str) -> str:
    """Why an array cannot be a video; "" if it can be one."""
    if len(shape) != 3 or (dtype and not is_float(dtype)):
        it_is = f"it is {dtype or 'an array'} {shape}"
        return f"must be a float array (frames, slots, slot_dim); {it_is}"
    if 0 in shape or max(shape) > MOST_SIZE or math.prod(shape) * 2 > MOST_VIDEO_BYTES:
        return f"an array {shape} is no video; at most {MOST_VIDEO_BYTES >> 20} MiB are one"
    if shape[1] > MOST_SLOTS:
        return (
            f"an array {shape} would be {shape[0]} frames of {shape[1]} slots, more than"
            f" {MOST_SLOTS}; its axes must be (frames, slots, slot_dim)"
        )
    return ""


def is_float(dtype: str) -> bool:
    """Whether a name is that of a type of floats, in either byte order."""
    try:
        return dtype == "bfloat16" or np.dtype(dtype).kind == "f"
    except TypeError:
        return False
