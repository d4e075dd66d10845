"""Windows of frames from a split that fits in memory.

    load_slots ──> (V, T, S, D) ──gather(ids)──> slots (B, T_h + T_p, S, D) float32, and labels where truth is known

A window is a video and a start: frames start + k * frameskip, k = 0 .. T_h + T_p - 1. It takes up (T_h + T_p) * frameskip frames of the
video (as the released code has it; the last frameskip - 1 are not read), and every start is a sample. A batch is one gather of rows;
no Python runs per window.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cjepa_dist.data.dtypes import widen
from cjepa_dist.data.manifest import Manifest
from cjepa_dist.data.shards import load_slots
from cjepa_dist.data.truth import WindowTruth, load_presence
from cjepa_dist.errors import UserError

PRESENT = 0.1  # mean square distance to the empty slot from which a slot holds something; slots have unit variance


class ResidentWindows:
    """All windows of a split (or of its first `videos`), in host memory.

    `contact_share` > 0 repeats windows with a contact in the predicted interval within the epoch until they make up that share (nothing
    changes where they already do); needs truth in the shards. `truth` adds labels to each batch. UserError if the videos are too short
    for a window, or if truth is needed and absent. With a `horizon` T is T_h + horizon * T_p; labels are for the first T_h + T_p frames.

    `shape` (T, S, D) is that of a video, `videos` their number, `manifest` the data set's: what a caller checks a model against.
    Window w is start w % `starts` of video w // `starts`; id i is window `table[i]`, or i itself where `table` is None.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        history_frames: int,
        pred_frames: int,
        frameskip: int,
        horizon: int = 1,
        contact_share: float = 0.0,
        videos: int = 0,
        truth: bool = False,
    ) -> None:
        self.manifest = Manifest.load(folder)
        self.shape = self.manifest.shape
        length = history_frames + horizon * pred_frames
        frames, span = self.shape[0], length * frameskip
        self.starts = frames - span + 1
        if self.starts < 1:
            times = f"horizon {horizon} * " if horizon > 1 else ""
            need = f"(history_frames {history_frames} + {times}pred_frames {pred_frames}) * frameskip {frameskip} = {span} frames"
            raise UserError(f"a window takes {need}, the videos in {folder} have {frames}; choose a shorter window")
        if not 0.0 <= contact_share < 1.0:
            raise UserError(f"contact_share={contact_share}: must be at least 0 and below 1")
        slots = load_slots(folder, split, videos)
        self.videos, self.keys = len(slots), self.manifest.keys(split)
        if not self.videos:
            raise UserError(f"split {split!r} in {folder} holds no videos")
        self.rows = slots.reshape(self.videos * frames, -1)
        self.steps = np.arange(length) * frameskip
        self.present = load_presence(folder, split, videos)
        self.empty = None if self.manifest.empty_slot is None else torch.tensor(self.manifest.empty_slot, dtype=torch.float32)
        self.truth: WindowTruth | None = None
        self.table: np.ndarray | None = None
        if truth or contact_share:
            known = WindowTruth(
                folder,
                split,
                history_frames=history_frames,
                pred_frames=pred_frames,
                frameskip=frameskip,
                videos=videos,
                contacts_only=not truth,
            )
            self.truth = known if truth else None
            if contact_share:
                self.table = weighted(known.has_contact(self.starts).ravel(), contact_share)

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.videos * self.starts if self.table is None else len(self.table)

    def totals(self, ids: np.ndarray) -> dict[str, float]:
        """{"windows": their number}."""
        return {"windows": float(len(ids))}

    def names(self, ids: np.ndarray) -> list[str]:
        """For people: the key of each window's video and its first frame, `video_00012@35`."""
        video, start = np.divmod(ids if self.table is None else self.table[ids], self.starts)
        return [f"{self.keys[v]}@{s}" for v, s in zip(video, start)]

    def gather(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,), with T = T_h + T_p; `sample` (B,) is handed on.

        slots (B, T, S, D) float32; sample (B,) int64; present (B, T, S) bool: the slot holds an object in view, where the shards have
        truth; else that it is not the empty slot, where the manifest knows that; else all True. With truth also, bool unless said:
        - contact (B, S, S): the pair touches after the second history frame, up to the last predicted one
        - contact_new (B, S, S): it touches after the last history frame and did not within the history
        - collides (B, S): the slot is in a contact after the last history frame
        - near_miss (B, S, S): no contact in the window, but closer than 1.5 diameters at some frame after the last of the history
        - influence (B, S, S): [b, i, j]: j moves i within the predicted interval; only where the truth is for an interval as long
        - position (B, T, S, 2) float32, units of the world
        """
        ids = np.asarray(ids, np.int64)
        if self.table is not None:
            ids = self.table[ids]
        video, start = np.divmod(ids, self.starts)
        frames, slots, width = self.shape
        rows = (video * frames + start)[:, None] + self.steps
        shape = (len(ids), len(self.steps), slots, width)
        # numpy, so one thread: this runs beside the training step, whose threads a second OpenMP team would stall.
        batch = {
            "slots": torch.from_numpy(widen(self.rows[rows.reshape(-1)]).reshape(shape)),
            "sample": torch.from_numpy(np.array(sample, np.int64)),
        }
        if self.present is not None:
            batch["present"] = torch.from_numpy(self.present[video[:, None], start[:, None] + self.steps])
        elif self.empty is not None:
            batch["present"] = (batch["slots"] - self.empty).square().mean(-1) > PRESENT
        else:
            batch["present"] = torch.ones(shape[:3], dtype=torch.bool)
        if self.truth is not None:
            batch |= {name: torch.from_numpy(array) for name, array in self.truth.labels(video, start).items()}
        return batch


def weighted(contact: np.ndarray, share: float) -> np.ndarray:
    """Window ids (N',) of an epoch in which windows with `contact` (N,) make up at least `share`: those are repeated."""
    found, other = np.flatnonzero(contact), int((~contact).sum())
    if not len(found):
        raise UserError(f"contact_share={share}, but no window of the split has a contact in its predicted interval")
    wanted = round(share / (1.0 - share) * other)
    extra = np.resize(found, max(0, wanted - len(found)))
    return np.concatenate([np.arange(len(contact)), extra]).astype(np.int64)
