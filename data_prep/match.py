"""Matches slots with annotated objects: `python -m data_prep.match data=DIR out=DIR2`.

    some videos ──fit──> PresenceDetector; with annotations also ObjectProbe
    every video ──ObjectProbe───────> slot_object, position ──┬──> same sample + <key>.match.npz
                └─PresenceDetector──> present ────────────────┘

This is for data without ground truth. Where the shards have it, it only serves to score the
matches.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.fingerprint import (
    check_not_input,
    dataset_fingerprint,
    holds_already,
    redo_option,
)
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.sample import ANNOTATION, SLOTS, Sample
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.runtime.progress import Progress
from data_prep.presence import PresenceDetector
from data_prep.slot_matching import MAX_UNEXPLAINED, AnnotatedScene, ObjectProbe, fit_probe


@dataclass
class Match:
    """Add to every video of slot shards: each slot's object, its position, when it is in view."""

    data: str = option(MISSING, "folder of slot shards", path=True)
    out: str = option(MISSING, "folder to write", path=True)
    fit_videos: int = option(
        300,
        "videos to fit the probe on, from the start of the train split",
        unit="videos",
        least=2,
    )
    every: int = option(8, "the probe is fitted on every N-th frame", unit="frames", least=1)
    splits: list[str] = option([], "splits to write; empty = all")
    videos: int = option(0, "only the first N videos of a split; 0 = all", unit="videos", least=0)
    shard_mb: int = option(256, "size of a shard", unit="MiB", least=1, most=1 << 20)
    redo: bool = redo_option()


def main(config: Match) -> None:
    """Fit, write, print a summary. UserError for annotations that are not of the slots' scenes."""
    check_not_input(config.out, config.data)
    manifest = Manifest.load(config.data)
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("data", "out", "shard_mb", "redo")
    }
    fingerprint = {**settings, "data": dataset_fingerprint(manifest)}
    source = {"made_by": "data_prep.match", **settings, "fingerprint": fingerprint}
    source["of"] = manifest.source
    if holds_already(config.out, source, redo=config.redo):
        print(f"{config.out} already holds these matches")
        return
    presence, probe = fit_on_videos(config, manifest)
    counts = MatchCounts()
    with DatasetWriter(
        config.out,
        encoder=manifest.encoder,
        source=source,
        dtype=manifest.dtype,
        shard_mb=config.shard_mb,
        empty_slot=manifest.empty_slot,
        resume=fingerprint,
        redo=config.redo,
    ) as writer:
        for split in config.splits or manifest.splits:
            count = min(config.videos or manifest.count(split), manifest.count(split))
            known, progress = writer.split(split).written_keys, Progress(count)
            for sample in read_split(config.data, split, videos=count):
                if sample.key not in known:
                    match = match_video(sample, presence, probe)
                    counts.add(sample, match)
                    writer.split(split).add(dataclasses.replace(sample, match=match))
                progress.add()
    print(f"{config.out}: {counts.report()}")


def fit_on_videos(config: Match, manifest: Manifest) -> tuple[PresenceDetector, ObjectProbe | None]:
    """Fit the detector of presence and, if there are annotations, the probe of objects."""
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    frames = np.arange(0, manifest.frames, config.every)
    slots, annotated = [], []
    for sample in read_split(
        config.data,
        split,
        (SLOTS, ANNOTATION),
        videos=min(config.fit_videos, manifest.count(split)),
    ):
        slots.append(to_float32(sample.slots)[frames])  # type: ignore[arg-type]
        if (scene := AnnotatedScene.from_annotation(sample.annotation or {})) is not None:
            annotated.append((slots[-1][frames < len(scene.visible)], scene.at_frames(frames)))
    presence = PresenceDetector(np.stack(slots))
    print(
        f"presence: {len(presence.empty)} vectors of slots without an object,"
        f" from {len(slots)} videos of {split}"
    )
    if not annotated:
        print("no annotations: slots are not matched with objects")
        return presence, None
    probe, rounds = fit_probe(annotated)
    explained = 1 - probe.residual_variance / probe.total_variance
    print(
        f"probe: fitted on {len(annotated)} videos in {rounds} rounds; it explains"
        f" {100 * explained[:2].mean():.1f} % of the variance of the position,"
        f" {100 * explained[2:].mean():.1f} % of that of the attributes"
    )
    return presence, probe


def match_video(
    sample: Sample, presence: PresenceDetector, probe: ObjectProbe | None
) -> dict[str, np.ndarray]:
    """`slot_object` (S,) int8, `present` (T, S) bool, `position` (T, S, 2) float32.

    Presence and position come from the annotation in its frames, from the slots in later ones.
    """
    slots = to_float32(sample.slots)  # type: ignore[arg-type]
    slot_object, present = np.full(slots.shape[1], -1, np.int8), presence.detect(slots)
    position = np.zeros((*slots.shape[:2], 2), np.float32)
    scene = AnnotatedScene.from_annotation(sample.annotation or {})
    if probe is not None and scene is not None:
        annotated = min(len(slots), len(scene.visible))
        slot = probe.assign(
            slots[:annotated], scene.at_frames(np.arange(annotated)), MAX_UNEXPLAINED
        )
        slot_object[slot[slot >= 0]] = scene.object_ids[slot >= 0]
        present[:, slot_object < 0] = False
        for k in np.flatnonzero(slot >= 0):
            present[:annotated, slot[k]] = scene.visible[:annotated, k]
            position[:, slot[k]] = probe.predict(slots[:, slot[k]])[:, :2]
            position[:annotated, slot[k]] = scene.targets[:annotated, k, :2]
    return {"slot_object": slot_object, "present": present, "position": position}


class MatchCounts:
    """Counts of matches and, where there is ground truth, of correct ones."""

    def __init__(self) -> None:
        self.videos = self.annotated = self.slots = self.matched = self.compared = 0
        self.objects = self.correct = self.wrong = self.frames = self.agreeing = 0

    def add(self, sample: Sample, match: dict[str, np.ndarray]) -> None:
        self.videos += 1
        self.annotated += "motion_trajectory" in (sample.annotation or {})
        self.slots += len(match["slot_object"])
        self.matched += int((match["slot_object"] >= 0).sum())
        if sample.truth is None or "slot_object" not in sample.truth:
            return
        true, present = (
            sample.truth["slot_object"],
            sample.truth["present"][: len(match["present"])],
        )
        visible = (true >= 0) & present.any(0)
        same = match["slot_object"] == true
        self.compared += 1
        self.objects += int(visible.sum())
        self.correct += int((visible & same).sum())
        self.wrong += int(((match["slot_object"] >= 0) & ~same).sum())
        self.frames += present.size
        self.agreeing += int((match["present"] == present).sum())

    def report(self) -> str:
        text = (
            f"{self.videos} videos, {self.annotated} with annotations;"
            f" {self.matched} of {self.slots} slots hold a known object"
        )
        if not self.compared:
            return text + "; no ground truth to compare with"
        correct = 100 * self.correct / max(1, self.objects)
        agreeing = 100 * self.agreeing / max(1, self.frames)
        return (
            f"{text}; against the ground truth of {self.compared} videos: {correct:.2f} % of"
            f" {self.objects} objects in view are in the right slot,"
            f" {self.wrong} slots have a wrong object; presence agrees"
            f" at {agreeing:.2f} % of {self.frames} slots and frames"
        )


if __name__ == "__main__":
    launch(Match, main)
