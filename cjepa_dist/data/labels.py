"""Labels of windows: what the ground truth of simulated videos says about them.

    truth.npz of each video ──load_truth──> arrays (V, ...) ──WindowLabels──> labels (B, S, S)

Contacts are kept as running counts (V, frames, S, S): a pair touched in the frames (a, b] if its
counts at a and b differ, so a batch needs two gathers and no loop. One byte a pair and frame:
128 x 49 bytes = 6.3 KB a video.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.ground_truth import load_truth
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.errors import UserError

NEAR_MISS_DIAMETERS = 1.5  # a near miss comes closer than this many diameters


class WindowLabels:
    """Labels of the windows of a split, read by (video, start frame).

    They cover the first T_h + T_p frames of each window. `frames` and `slots` are those of the
    slots (V, frames, slots, D). With `contacts_only` the class answers `has_contact` alone.
    UserError if the ground truth lacks an array or has another shape than the slots.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        spec: WindowSpec,
        *,
        videos: int,
        contacts_only: bool,
    ) -> None:
        manifest = Manifest.load(folder)
        self.frames, self.slots = manifest.frames, manifest.slots
        self.frame_offsets = np.arange(spec.history_frames + spec.pred_frames) * spec.frameskip
        # From the first frame of the window to its second and its last history frame, and its end.
        self.second = spec.frameskip * min(1, spec.history_frames - 1)
        self.last_history = spec.frameskip * (spec.history_frames - 1)
        self.end = int(self.frame_offsets[-1])
        needed = ("contacts",) if contacts_only else ("contacts", "present", "position", "radius")
        optional = () if contacts_only else ("influence", "influence_horizon")
        truth = load_truth(folder, split, videos, (*needed, *optional))
        if missing := [name for name in needed if name not in truth]:
            raise UserError(
                f"truth of split {split!r} in {folder} lacks {', '.join(missing)}; "
                "make the data set again"
            )
        contacts = self.pair_table(truth["contacts"], "contacts", symmetric=True)
        self.contact_counts = np.cumsum(contacts, axis=1, dtype=np.uint8)
        self.influence: np.ndarray | None = None
        if contacts_only:
            return
        for name, shape in (("present", (self.slots,)), ("position", (self.slots, 2))):
            if truth[name].shape[1] < self.frames or truth[name].shape[2:] != shape:
                raise UserError(
                    f"truth {name} of split {split!r} in {folder} is {truth[name].shape[1:]}, "
                    f"but the slots have {self.frames} frames of {self.slots}; "
                    "make the data set again"
                )
        self.present = np.ascontiguousarray(truth["present"][:, : self.frames], bool)
        self.position = np.ascontiguousarray(truth["position"][:, : self.frames], np.float32)
        radius = truth["radius"].astype(np.float32)
        self.near_miss_squared = (NEAR_MISS_DIAMETERS * 2 * radius) ** 2
        # Influence is stored for one length of the predicted interval. It would be a wrong label
        # for any other, so such windows have none.
        predicted = self.end - self.last_history
        if "influence" in truth and (truth["influence_horizon"] == predicted).all():
            self.influence = self.pair_table(truth["influence"], "influence", symmetric=False)

    def pair_table(self, rows: list[np.ndarray], name: str, *, symmetric: bool) -> np.ndarray:
        """Rows (frame, i, j) of each video -> (V, frames, S, S) uint8, 1 at each row.

        `symmetric` sets (frame, j, i) too.
        """
        table = np.zeros((len(rows), self.frames, self.slots, self.slots), np.uint8)
        video = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        frame, i, j = (
            np.concatenate([r.reshape(-1, 3) for r in rows]).astype(np.int64).T
            if rows
            else np.zeros((3, 0), np.int64)
        )
        if len(frame) and (
            min(frame.min(), i.min(), j.min()) < 0 or max(i.max(), j.max()) >= self.slots
        ):
            raise UserError(
                f"truth {name} holds a frame or slot that does not exist; "
                "rows must be (frame, slot, slot)"
            )
        kept = frame < self.frames  # the truth may be longer than the slots
        video, frame, i, j = video[kept], frame[kept], i[kept], j[kept]
        table[video, frame, i, j] = 1
        if symmetric:
            table[video, frame, j, i] = 1
        return table

    def has_contact(self, windows_per_video: int) -> np.ndarray:
        """(V, windows) bool: whether any pair touches in the predicted interval of each window."""
        at_end, at_last = (
            self.contact_counts[:, frame : frame + windows_per_video]
            for frame in (self.end, self.last_history)
        )
        return (at_end != at_last).any((2, 3))

    def get_labels(self, video: np.ndarray, start: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of windows (B,): keys and shapes as `InMemoryWindows.get_batch` lists them."""
        at_first, at_second, at_last, at_end = (
            self.contact_counts[video, start + offset]
            for offset in (0, self.second, self.last_history, self.end)
        )
        predicted = at_end != at_last
        frames = start[:, None] + self.frame_offsets
        later = start[:, None] + np.arange(self.last_history + 1, self.end + 1)
        position = self.position[video[:, None], later]
        present = self.present[video[:, None], later]
        reach = self.near_miss_squared[video][:, None, None]
        # One slot at a time against all others: the full difference (B, F, S, S, 2) would be larger
        # than the batch of slots.
        near = np.empty(predicted.shape, bool)
        for slot in range(self.slots):
            distance = ((position - position[:, :, slot : slot + 1]) ** 2).sum(-1)
            both = present & present[:, :, slot : slot + 1]
            near[:, slot] = ((distance < reach) & both).any(1)
        near[:, np.arange(self.slots), np.arange(self.slots)] = False
        labels = {
            "present": self.present[video[:, None], frames],
            "position": self.position[video[:, None], frames],
            "contact": at_end != at_second,
            "contact_new": predicted & (at_last == at_first),
            "collides": predicted.any(-1),
            "near_miss": near & (at_end == at_first),
        }
        if self.influence is not None:
            labels["influence"] = self.influence[video, start + self.last_history].astype(bool)
        return labels
