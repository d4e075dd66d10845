"""What the data itself says about a video that is drawn: its objects, the simulator's truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cjepa_dist.clevrer.questions import scene_objects
from cjepa_dist.clevrer.scene import VIDEO_FRAMES, SceneObject
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import open_videos, read_video
from cjepa_dist.data.format.sample import TRUTH, Sample
from cjepa_dist.data.removed_slots import removed_slots, slot_objects
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.counterfactual_metrics import AFFECTED_RADII
from cjepa_dist.reporting.scene.scene import Ghost, Panel, drawn_square

VIEW_HALF_WIDTH = 1.0  # the simulator's camera sees centres within it, world units
MARGIN = 1.2  # around the view, in radii
MAX_VIDEOS = 400  # in which `eventful_videos` looks
TRUTH_ARRAYS = (  # that it reads
    "radius",
    "contacts",
    "position",
    "present",
    "counterfactual_removed",
    "counterfactual_position",
    "counterfactual_present",
)


class Video:
    """A sample, with its n objects in the order of their ids.

    Raises UserError where the data does not say which slot holds which object.
    """

    def __init__(self, sample: Sample, manifest: Manifest) -> None:
        self.sample, self.manifest = sample, manifest
        self.truth = sample.truth or {}
        of_slot = slot_objects(sample)
        self.object_ids: list[int] = sorted(of_slot[of_slot >= 0].tolist())
        # (n,): the slot that holds each object
        self.slots = np.array([of_slot.tolist().index(o) for o in self.object_ids], int)
        future = manifest.source.get("future_frames", 0)
        self.observed = manifest.frames - (
            future if manifest.source.get("kind") == "rollout" else 0
        )

    @property
    def known(self) -> list[SceneObject]:
        """The objects with their attributes; empty where no annotation tells them."""
        annotation = self.sample.annotation or {}
        return scene_objects(annotation) if annotation.get("object_property") else []

    @property
    def radius(self) -> float:
        """Of an object in world units; 0 = not known. CLEVRER's objects stand on the ground."""
        if "radius" in self.truth:
            return float(self.truth["radius"])
        trajectory = (self.sample.annotation or {}).get("motion_trajectory") or ()
        heights = [o["location"][2] for frame in trajectory for o in frame["objects"]]
        return max(0.0, float(np.median(heights))) if heights else 0.0

    def recorded_presence(self, frames: int) -> np.ndarray:
        """(frames, n) bool from truth or match; after its end, as in its last frame."""
        known = self.truth or self.sample.match or {}
        present = known["present"][: self.observed, self.slots]
        return present[np.minimum(np.arange(frames), len(present) - 1)]

    def slot_of(self, wanted: str) -> int:
        """The slot of the object that a user names: an id, or words such as "red cube".

        Raises UserError, naming all objects, unless exactly one fits.
        """
        words = wanted.lower().split()
        if wanted.strip().isdigit():
            fitting = [int(wanted)] if int(wanted) in self.object_ids else []
        else:
            fitting = [
                o.object_id
                for o in self.known
                if words and {*words} <= {o.color, o.material, o.shape}
            ]
        fitting = [o for o in fitting if o in self.object_ids]
        if len(fitting) != 1:
            there = [f"{o.object_id} {o.color} {o.material} {o.shape}" for o in self.known]
            listed = ", ".join(there or map(str, self.object_ids))
            raise UserError(
                f"removed={wanted} fits {len(fitting)} objects of {self.sample.key}, which has "
                f"{listed}"
            )
        return int(self.slots[self.object_ids.index(fitting[0])])

    def removable_slots(self, first_frame: int) -> list[int]:
        """The slots whose removal may be drawn: the one that changes most in the truth, if known.

        Else those that questions remove, else all with an object in view at the first frame. See
        `changed_frames` for `first_frame`.
        """
        if len(changes := changed_frames(self.truth, first_frame)):
            return [int(self.truth["counterfactual_removed"][changes.argmax()])]
        has_questions = self.sample.questions is not None and self.sample.annotation is not None
        if has_questions and (slots := removed_slots(self.sample, all_objects=False)):
            return slots
        return self.slots[self.recorded_presence(1)[0]].tolist()

    def truth_panel(self, frames: int) -> Panel | None:
        """The simulator's world; None where there is no truth of so many frames."""
        if len(self.truth.get("position", ())) < frames:
            return None
        return Panel(
            title="Truth",
            subtitle="simulator",
            position=self.truth["position"][:frames, self.slots],
            present=self.truth["present"][:frames, self.slots],
            contacts=self.object_rows(self.truth["contacts"], frames),
        )

    def truth_without(self, slot: int, frames: int, subtitle: str, ghost: Ghost) -> Panel | None:
        """The simulator's world without the object in a slot; None where it was not simulated."""
        worlds = self.truth.get("counterfactual_removed", np.zeros(0, int)).tolist()
        if slot not in worlds or len(self.truth["counterfactual_position"][0]) < frames:
            return None
        w = worlds.index(slot)
        rows = self.truth["counterfactual_contacts"]
        return Panel(
            title="Truth",
            subtitle=subtitle,
            position=self.truth["counterfactual_position"][w, :frames, self.slots].swapaxes(0, 1),
            present=self.truth["counterfactual_present"][w, :frames, self.slots].swapaxes(0, 1),
            contacts=self.object_rows(rows[rows[:, 0] == w, 1:], frames),
            ghost=ghost,
        )

    def object_rows(self, rows: np.ndarray, frames: int) -> np.ndarray:
        """Rows (frame, slot, slot) before `frames` -> (frame, object, object)."""
        index = {slot: number for number, slot in enumerate(self.slots.tolist())}
        found = [(f, index[i], index[j]) for f, i, j in rows.tolist() if f < frames]
        return np.array(found, int).reshape(-1, 3)

    def limits(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Corners (2,), (2,) of what is drawn, and the half width of the camera's view or 0.

        `points` (N, 2): where objects are. The view is known for simulated data only.
        """
        radius = self.radius
        known = self.truth.get("position", np.zeros((0, 2)))[self.truth.get("present", ...)]
        if len(known) and np.abs(known).max() <= VIEW_HALF_WIDTH:
            half = np.full(2, VIEW_HALF_WIDTH + MARGIN * radius)
            return -half, half, VIEW_HALF_WIDTH
        return (
            *drawn_square(points if len(points) else np.zeros((1, 2)), MARGIN * radius + 1e-3),
            0,
        )


def open_video(data: str, split: str, number: int, rollout: str = "") -> Video:
    """Video `number` of a split, from a rollout of the data where one is given.

    Raises UserError if there is no such video, or the rollout is not one of this data.
    """
    folder = rollout or data
    video = Video(read_video(folder, split, number), Manifest.load(folder))
    if rollout:  # it does not keep the simulator's worlds
        source = read_video(data, split, number, (TRUTH,))
        if source.key != video.sample.key:
            raise UserError(
                f"video {number} of split {split!r} is {source.key} in {data} and "
                f"{video.sample.key} in {rollout}, which is no rollout of it"
            )
        video.truth = source.truth or {}
    return video


def changed_frames(truth: Mapping[str, np.ndarray], first_frame: int) -> np.ndarray:
    """(W,): objects x frames that each of the simulated worlds without an object changes.

    0 for a world that changes before `first_frame`, the first that a rollout predicts: it cannot
    know of the change. Length 0 where the truth of the video has no such world.
    """
    if "counterfactual_position" not in truth:
        return np.zeros(0, int)
    both = truth["counterfactual_present"] & truth["present"]
    moved = np.linalg.norm(truth["counterfactual_position"] - truth["position"], axis=-1)
    changed = both & (moved > AFFECTED_RADII * truth["radius"])
    return changed.sum((1, 2)) * ~changed[:, :first_frame].any((1, 2))


def eventful_videos(data: str, split: str, count: int, first_frame: int) -> list[int]:
    """See `scene_view.interesting_videos`; `first_frame` as in `changed_frames`."""
    videos = min(Manifest.load(data).count(split), MAX_VIDEOS)
    ranks = []
    for number, (shard, key) in enumerate(open_videos(data, split, videos)):
        truth = shard.read_arrays(key, TRUTH, TRUTH_ARRAYS) or {}
        contacts = future_contacts(truth)
        changed = int(changed_frames(truth, first_frame).max(initial=0))
        much = min(changed, 60) + 30 * min(contacts, 2)
        ranks.append((-(contacts > 0) - (changed > 0), -much, number))
    return [number for *_, number in sorted(ranks)[:count]]


def future_contacts(truth: Mapping[str, np.ndarray]) -> int:
    """How many pairs touch after the observed frames."""
    rows = truth["contacts"].tolist() if "contacts" in truth else []
    return len({(i, j) for frame, i, j in rows if frame >= VIDEO_FRAMES})
