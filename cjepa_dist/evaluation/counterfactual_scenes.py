"""Videos with their simulated worlds without an object, in batches on the model's device.

shards with counterfactual truth ──simulated_worlds──┐
observed frames ─────────────────────────────────────┴──> SceneBatch ──> ground truth (W, ...)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cjepa_dist.clevrer.scene import VIDEO_FRAMES
from cjepa_dist.data.counterfactual_worlds import simulated_worlds
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.errors import UserError


@dataclass(frozen=True)
class SceneBatch:
    """V videos and their W worlds without an object.

    `slots` (V, T, S, D) are the observed frames. Frames after the video are not compared.
    """

    samples: list[Sample]
    slots: Tensor
    video: Tensor  # (W,) index into `samples`
    removed: Tensor  # (W,) slot of the removed object
    worlds: list[dict[str, np.ndarray]]  # per video: worlds.npz as simulated

    @cached_property
    def ground_truth(self) -> dict[str, Tensor]:
        """The simulator's values for every world.

        - slots (W, T, S, D), position (W, T, S, 2), present (W, T, S)
        - diverged (W, S): the first frame at which a slot is no longer the factual one
        - contacts (W, T, S, S): how often each pair has touched so far
        - factual_position, factual_contacts: the same in the world with the object
        """
        truths = [sample.truth or {} for sample in self.samples]
        shape = truths[0]["counterfactual_present"].shape[1:]
        contacts = [
            cumulative_contacts(rows[rows[:, 0] == world, 1:], shape)
            for rows, worlds in zip([t["counterfactual_contacts"] for t in truths], self.worlds)
            for world in range(len(worlds["removed"]))
        ]
        video = self.video.cpu().numpy()
        factual_contacts = np.stack([cumulative_contacts(t["contacts"], shape) for t in truths])
        arrays = {
            "slots": np.concatenate([to_float32(world["slots"]) for world in self.worlds]),
            "diverged": np.concatenate([w["diverged"] for w in self.worlds]).astype(np.int64),
            "position": np.concatenate([t["counterfactual_position"] for t in truths]),
            "present": np.concatenate([t["counterfactual_present"] for t in truths]),
            "contacts": np.stack(contacts),
            "factual_position": np.stack([t["position"] for t in truths])[video],
            "factual_contacts": factual_contacts[video],
        }
        device = self.slots.device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def scene_batches(
    device: torch.device, data: str | Path, split: str, *, videos: int, batch_size: int
) -> Iterator[SceneBatch]:
    """The videos that have simulated worlds. Raises UserError where the split has no such truth."""
    samples: list[Sample] = []
    count = min(videos, Manifest.load(data).count(split))
    fields = ("scene_index", "object_property")
    for sample in read_split(data, split, videos=count, annotation_fields=fields):
        truth = sample.truth or {}
        if "counterfactual_slots" not in truth:
            raise UserError(
                f"split {split!r} of {data}, key {sample.key}: no counterfactual truth; simulate "
                "with counterfactual_splits"
            )
        if len(truth["counterfactual_removed"]):
            samples.append(sample)
        if len(samples) == batch_size:
            yield make_batch(device, samples)
            samples = []
    if samples:
        yield make_batch(device, samples)


def make_batch(device: torch.device, samples: list[Sample]) -> SceneBatch:
    worlds = [
        simulated_worlds(s, [int(slot) for slot in (s.truth or {})["counterfactual_removed"]])
        for s in samples
    ]
    frames = np.stack([to_float32(np.asarray(sample.slots)[:VIDEO_FRAMES]) for sample in samples])
    slots = torch.from_numpy(frames).to(device)
    removed = np.concatenate([world["removed"] for world in worlds]).astype(np.int64)
    sizes = torch.tensor([len(world["removed"]) for world in worlds])
    video = torch.arange(len(samples)).repeat_interleave(sizes)
    return SceneBatch(
        samples, slots, video.to(device), torch.from_numpy(removed).to(device), worlds
    )


def cumulative_contacts(rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Contacts (frame, i, j) -> (T, S, S) int16: how often each pair has touched so far."""
    contacts = np.zeros((*shape, shape[-1]), np.int16)
    frame, i, j = rows[rows[:, 0] < shape[0]].astype(np.int64).T
    contacts[frame, i, j] = contacts[frame, j, i] = 1
    return contacts.cumsum(0, dtype=np.int16)
