"""Windows of frames from a split that fits in memory (`stream.py`: from one that does not).

    load_slots ──> (V, T, S, D) ──gather(ids)──> slots (B, T_h + T_p, S, D) as stored, and labels where truth is known
                  host, or device                  └──to_device──> float32, where they are used

A window is a video and a start: frames start + k * frameskip, k = 0 .. T_h + T_p - 1. It takes up (T_h + T_p) * frameskip frames of the
video (as the released code has it; the last frameskip - 1 are not read), and every start is a sample. A batch is one gather of
runs (`phases.py`); no Python runs per window. What is stored in 16 bits stays so until it is used: half as much to copy, here and to a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cjepa_dist.data.format.dtypes import stored, widen
from cjepa_dist.data.format.frame_order import phase_order, runs
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.labels import WindowTruth, load_presence
from cjepa_dist.data.sampler import ShuffledSampler
from cjepa_dist.errors import UserError

PRESENT = 0.1  # mean square distance to the empty slot from which a slot holds something; slots have unit variance


class Windows:
    """What windows of a split are, wherever its slots are: videos x starts. UserError if its videos are too short for one.

    With a `horizon` T is T_h + horizon * T_p. `shape` (T, S, D) is that of a video, `manifest` the data set's: what a caller checks a model
    against. Window w is start w % `starts` of video w // `starts`.
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
    ) -> None:
        self.manifest = Manifest.load(folder)
        self.shape, self.keys = self.manifest.shape, self.manifest.keys(split)
        length = history_frames + horizon * pred_frames
        frames, span = self.shape[0], length * frameskip
        self.starts = frames - span + 1
        if self.starts < 1:
            times = f"horizon {horizon} * " if horizon > 1 else ""
            need = f"(history_frames {history_frames} + {times}pred_frames {pred_frames}) * frameskip {frameskip} = {span} frames"
            raise UserError(
                f"a window takes {need}, the videos in {folder} have {frames}; choose a shorter window"
            )
        if not self.keys:
            raise UserError(f"split {split!r} in {folder} holds no videos")
        self.steps = np.arange(length) * frameskip
        self.phases = phase_order(frames, frameskip)
        self.place = np.argsort(self.phases)  # (T,) where each frame stands
        self.run = np.dtype(
            (np.void, length * self.shape[1] * self.shape[2] * stored(self.manifest.dtype).itemsize)
        )  # a window's bytes
        self.empty = (
            None
            if self.manifest.empty_slot is None
            else torch.tensor(self.manifest.empty_slot, dtype=torch.float32)
        )

    def names(self, ids: np.ndarray) -> list[str]:
        """For people: the key of each window's video and its first frame, `video_00012@35`."""
        return [f"{self.keys[v]}@{s}" for v, s in zip(*np.divmod(ids, self.starts))]

    def places(self, video: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(B,): which of the runs are the windows from frame `start` (B,) of `video` (B,) on."""
        return video * self.shape[0] + self.place[start]

    def tensor(self, gathered: np.ndarray) -> torch.Tensor:
        """Runs (B,) as (B, T, S, D) in the stored type."""
        values = gathered.view(stored(self.manifest.dtype)).reshape(
            len(gathered), len(self.steps), *self.shape[1:]
        )
        return torch.from_numpy(values).view(getattr(torch, self.manifest.dtype))

    def batch(
        self, slots: torch.Tensor, present: np.ndarray | None, sample: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """slots (B, T, S, D) as stored; sample (B,) int64; present (B, T, S) bool: the slot holds an object in view, where the shards have
        truth; else that it is not the empty slot, where the manifest knows that; else all True."""
        if present is not None:
            shown = torch.from_numpy(present)
        elif self.empty is not None:
            shown = (slots.float() - self.empty.to(slots.device)).square().mean(-1) > PRESENT
        else:
            shown = torch.ones(slots.shape[:3], dtype=torch.bool)
        return {
            "slots": slots,
            "sample": torch.from_numpy(np.array(sample, np.int64)),
            "present": shown,
        }


class InMemoryWindows(Windows, ShuffledSampler):
    """All windows of a split (or of its first `videos`), in host memory, one copy a node; or, with a `device`, in the memory of that.

    `contact_share` > 0 repeats windows with a contact in the predicted interval within the epoch until they make up that share (nothing
    changes where they already do); needs truth in the shards. `truth` adds labels to each batch, for the first T_h + T_p frames. UserError
    if truth is needed and absent, or the device has no room. `videos` is their number; id i is window `table[i]`, or i itself where
    `table` is None.
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
        device: torch.device | None = None,
    ) -> None:
        shape = {
            "history_frames": history_frames,
            "pred_frames": pred_frames,
            "frameskip": frameskip,
        }
        super().__init__(folder, split, **shape, horizon=horizon)
        if not 0.0 <= contact_share < 1.0:
            raise UserError(f"contact_share={contact_share}: must be at least 0 and below 1")
        self.slots = load_slots(folder, split, videos, self.phases)
        self.videos, self.runs = len(self.slots), runs(self.slots, self.run)
        self.on_device = None if device is None else self.copied(device)
        self.present = load_presence(folder, split, videos)
        self.truth: WindowTruth | None = None
        self.table: np.ndarray | None = None
        if truth or contact_share:
            known = WindowTruth(folder, split, **shape, videos=videos, contacts_only=not truth)
            self.truth = known if truth else None
            if contact_share:
                self.table = weighted(known.has_contact(self.starts).ravel(), contact_share)

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.videos * self.starts if self.table is None else len(self.table)

    def names(self, ids: np.ndarray) -> list[str]:
        return super().names(ids if self.table is None else self.table[ids])

    def gather(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,), with T = T_h + T_p; `sample` (B,) is handed on.

        What `Windows.batch` says. With truth also, bool unless said:
        - contact (B, S, S): the pair touches after the second history frame, up to the last predicted one
        - contact_new (B, S, S): it touches after the last history frame and did not within the history
        - collides (B, S): the slot is in a contact after the last history frame
        - near_miss (B, S, S): no contact in the window, but closer than 1.5 diameters at some frame after the last of the history
        - influence (B, S, S): [b, i, j]: j moves i within the predicted interval; only where the truth is for an interval as long
        - position (B, T, S, 2) float32, units of the world
        """
        ids = np.asarray(ids, np.int64)
        video, start = np.divmod(ids if self.table is None else self.table[ids], self.starts)
        index = self.places(video, start)
        if self.on_device is None:
            slots = self.tensor(self.runs[index])
        else:
            at = torch.from_numpy(index).to(self.on_device.device)
            slots = self.on_device.index_select(0, at).unflatten(
                -1, (len(self.steps), *self.shape[1:])
            )
        present = (
            None
            if self.present is None
            else self.present[video[:, None], start[:, None] + self.steps]
        )
        batch = self.batch(slots, present, sample)
        if self.truth is not None:
            batch |= {
                name: torch.from_numpy(array)
                for name, array in self.truth.labels(video, start).items()
            }
        return batch

    def video(self, number: int) -> np.ndarray:
        """A whole video (T, S, D) float32."""
        return widen(self.slots[number][self.place])

    def copied(self, device: torch.device) -> torch.Tensor:
        """The runs (N, T * S * D) as a view of a copy of the split on `device`, as stored. UserError where that has no room for it."""
        size = self.slots.nbytes
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise UserError(
                f"{device} has {1e-9 * free:.3g} GB free, the split takes {1e-9 * size:.3g}: take reading.kind=in_memory"
            )
        copy = torch.empty(
            self.slots.shape, dtype=getattr(torch, self.manifest.dtype), device=device
        )
        copy.copy_(torch.from_numpy(self.slots).view(copy.dtype))
        width = self.shape[1] * self.shape[2]
        return copy.as_strided((len(self.runs), len(self.steps) * width), (width, 1))


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch where it is used: on `device`, its slots in float32, exactly."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved | {"slots": moved["slots"].float()}


def weighted(contact: np.ndarray, share: float) -> np.ndarray:
    """Window ids (N',) of an epoch in which windows with `contact` (N,) make up at least `share`: those are repeated."""
    found, other = np.flatnonzero(contact), int((~contact).sum())
    if not len(found):
        raise UserError(
            f"contact_share={share}, but no window of the split has a contact in its predicted interval"
        )
    wanted = round(share / (1.0 - share) * other)
    extra = np.resize(found, max(0, wanted - len(found)))
    return np.concatenate([np.arange(len(contact)), extra]).astype(np.int64)
