"""Windows of frames, and the dataset of all windows of a split that fits in memory.

    load_slots ──> (V, T, S, D) ──get_batch(ids)──> slots (B, T_h + T_p, S, D) as stored, and labels
                   host or device                     └──to_device──> float32, where they are used

A window is a video and a start frame, and every start frame is a sample. A batch is one gather of
pieces of memory (`window_spec.py`); no Python runs per window. 16-bit slots stay 16-bit until they
are used: half as much to copy, here and to a GPU. A split that does not fit in memory:
`streaming/windows.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cjepa_dist.data.dataset import InMemoryDataset
from cjepa_dist.data.format.dtypes import storage_dtype, to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import load_slots
from cjepa_dist.data.ground_truth import load_presence
from cjepa_dist.data.labels import WindowLabels
from cjepa_dist.data.window_spec import WindowSpec, phase_order, window_views
from cjepa_dist.errors import UserError

# Mean square distance to the empty slot from which a slot counts as present; slots have variance 1.
PRESENT_DISTANCE = 0.1


class WindowDataset:
    """The windows of a split, wherever its slots are: videos x start frames.

    Window w starts at frame w % `windows_per_video` of video w // `windows_per_video`. `shape`
    (T, S, D) is that of a video, and `manifest` the data set's: what a caller checks a model
    against. UserError if the videos are too short for one window.
    """

    def __init__(self, folder: str | Path, split: str, spec: WindowSpec) -> None:
        self.manifest, self.spec = Manifest.load(folder), spec
        self.shape, self.keys = self.manifest.shape, self.manifest.keys(split)
        frames = self.shape[0]
        self.windows_per_video = frames - spec.span + 1
        if self.windows_per_video < 1:
            raise UserError(
                f"a window takes {spec}, the videos in {folder} have {frames}; "
                "choose a shorter window"
            )
        if not self.keys:
            raise UserError(f"split {split!r} in {folder} holds no videos")
        self.frame_offsets = np.arange(spec.length) * spec.frameskip
        self.frame_order = phase_order(frames, spec.frameskip)
        self.frame_place = np.argsort(self.frame_order)  # (T,): where each frame is in memory
        width = self.shape[1] * self.shape[2] * storage_dtype(self.manifest.dtype).itemsize
        self.window_dtype = np.dtype((np.void, spec.length * width))  # the bytes of one window
        self.empty = (
            None
            if self.manifest.empty_slot is None
            else torch.tensor(self.manifest.empty_slot, dtype=torch.float32)
        )

    def sample_names(self, ids: np.ndarray) -> list[str]:
        """For messages: the key of each window's video and its first frame, `video_00012@35`."""
        return [f"{self.keys[v]}@{s}" for v, s in zip(*np.divmod(ids, self.windows_per_video))]

    def view_index(self, video: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(B,): the elements of `window_views` for start frames (B,) of videos (B,)."""
        return video * self.shape[0] + self.frame_place[start]

    def to_tensor(self, windows: np.ndarray) -> torch.Tensor:
        """Windows (B,) of type `window_dtype` as (B, T, S, D) in the stored type."""
        values = windows.view(storage_dtype(self.manifest.dtype)).reshape(
            len(windows), len(self.frame_offsets), *self.shape[1:]
        )
        return torch.from_numpy(values).view(getattr(torch, self.manifest.dtype))

    def make_batch(
        self, slots: torch.Tensor, present: np.ndarray | None, sample: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """A batch of windows.

        - slots (B, T, S, D) in the stored type
        - sample (B,) int64: the index of each sample in the run
        - present (B, T, S) bool: the slot holds an object in view, where the shards say so; else
          the slot differs from the empty slot, where the manifest has one; else all True
        """
        if present is not None:
            visible = torch.from_numpy(present)
        elif self.empty is not None:
            distance = (slots.float() - self.empty.to(slots.device)).square().mean(-1)
            visible = distance > PRESENT_DISTANCE
        else:
            visible = torch.ones(slots.shape[:3], dtype=torch.bool)
        return {
            "slots": slots,
            "sample": torch.from_numpy(np.array(sample, np.int64)),
            "present": visible,
        }


class InMemoryWindows(WindowDataset, InMemoryDataset):
    """All windows of a split, or of its first `videos`, in memory.

    The slots are in host memory, one copy a node; or, with a `device`, in the memory of that.

    `contact_share` > 0 repeats windows with a contact in the predicted interval until they make up
    that share of the epoch; nothing changes where they already do. It needs ground truth in the
    shards. `truth` adds labels to each batch, for the first T_h + T_p frames. UserError if truth is
    needed and absent, or if the device has too little memory.

    `num_videos` is the number of videos. Id i is window `window_ids[i]`, or i itself where
    `window_ids` is None.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        spec: WindowSpec,
        *,
        contact_share: float = 0.0,
        videos: int = 0,
        truth: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(folder, split, spec)
        if not 0.0 <= contact_share < 1.0:
            raise UserError(f"contact_share={contact_share}: must be at least 0 and below 1")
        self.slots = load_slots(folder, split, videos, self.frame_order)
        self.num_videos = len(self.slots)
        self.views = window_views(self.slots, self.window_dtype)
        self.device_views = None if device is None else self.copy_to_device(device)
        self.present = load_presence(folder, split, videos)
        self.labels: WindowLabels | None = None
        self.window_ids: np.ndarray | None = None
        if truth or contact_share:
            labels = WindowLabels(folder, split, spec, videos=videos, contacts_only=not truth)
            self.labels = labels if truth else None
            if contact_share:
                contact = labels.has_contact(self.windows_per_video).ravel()
                self.window_ids = oversample_contacts(contact, contact_share)

    def __len__(self) -> int:
        """Samples in an epoch."""
        if self.window_ids is None:
            return self.num_videos * self.windows_per_video
        return len(self.window_ids)

    def sample_names(self, ids: np.ndarray) -> list[str]:
        return super().sample_names(ids if self.window_ids is None else self.window_ids[ids])

    def get_batch(self, ids: np.ndarray, sample: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows `ids` (B,), as `WindowDataset.make_batch` lists them.

        With `truth` also, with T = T_h + T_p:

        - contact (B, S, S) bool: the pair touches after the second history frame, up to the last
          predicted one
        - contact_new (B, S, S) bool: it touches after the last history frame and not before
        - collides (B, S) bool: the slot is in a contact after the last history frame
        - near_miss (B, S, S) bool: no contact in the window, but closer than 1.5 diameters at some
          frame after the last of the history
        - influence (B, S, S) bool: [b, i, j]: j moves i within the predicted interval; only where
          the stored truth is for an interval of that length
        - position (B, T, S, 2) float32, in world units
        """
        ids = np.asarray(ids, np.int64)
        windows = ids if self.window_ids is None else self.window_ids[ids]
        video, start = np.divmod(windows, self.windows_per_video)
        index = self.view_index(video, start)
        if self.device_views is None:
            slots = self.to_tensor(self.views[index])
        else:
            rows = torch.from_numpy(index).to(self.device_views.device)
            slots = self.device_views.index_select(0, rows).unflatten(
                -1, (len(self.frame_offsets), *self.shape[1:])
            )
        present = (
            None
            if self.present is None
            else self.present[video[:, None], start[:, None] + self.frame_offsets]
        )
        batch = self.make_batch(slots, present, sample)
        if self.labels is not None:
            batch |= {
                name: torch.from_numpy(array)
                for name, array in self.labels.get_labels(video, start).items()
            }
        return batch

    def read_video(self, number: int) -> np.ndarray:
        """All frames of a video (T, S, D) float32."""
        return to_float32(self.slots[number][self.frame_place])

    def copy_to_device(self, device: torch.device) -> torch.Tensor:
        """`window_views` (N, T * S * D) of a copy of the split on `device`, in the stored type.

        UserError if the device has too little memory.
        """
        size = self.slots.nbytes
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise UserError(
                f"{device} has {1e-9 * free:.3g} GB free, the split takes {1e-9 * size:.3g}: "
                "take reading.kind=in_memory"
            )
        copy = torch.empty(
            self.slots.shape, dtype=getattr(torch, self.manifest.dtype), device=device
        )
        copy.copy_(torch.from_numpy(self.slots).view(copy.dtype))
        width = self.shape[1] * self.shape[2]
        return copy.as_strided((len(self.views), len(self.frame_offsets) * width), (width, 1))


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on `device`, its slots in float32, exactly."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved | {"slots": moved["slots"].float()}


def oversample_contacts(contact: np.ndarray, share: float) -> np.ndarray:
    """Window ids (N',) of an epoch in which windows with `contact` (N,) make up at least `share`.

    Windows with a contact are repeated as often as needed.
    """
    found, other = np.flatnonzero(contact), int((~contact).sum())
    if not len(found):
        raise UserError(
            f"contact_share={share}, but no window of the split has a contact in its predicted "
            "interval"
        )
    wanted = round(share / (1.0 - share) * other)
    extra = np.resize(found, max(0, wanted - len(found)))
    return np.concatenate([np.arange(len(contact)), extra]).astype(np.int64)
