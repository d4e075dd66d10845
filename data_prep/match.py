"""Which slots hold which objects, for data without truth: `python -m data_prep.match data=DIR out=DIR2`.

    some videos ──> Presence (presence.py), and Probe (matching.py) where there are annotations
    every video ──Probe──> slot_object, position ──┬──> the same sample with <key>.match.npz
                └─Presence──> present ─────────────┘

Where the shards have truth it is used to say how good this is, and for nothing else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.data.format.dtypes import to_float32
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.sample import ANNOTATION, SLOTS, Sample
from cjepa_dist.data.format.writer import DatasetWriter
from data_prep.presence import PresenceDetector
from data_prep.progress import Progress
from data_prep.slot_matching import MAX_UNEXPLAINED, AnnotatedScene, ObjectProbe, fit_probe


@dataclass
class Match:
    """Write slot shards with, for every video, which object a slot holds, when it is in view, and where."""

    data: str = option(MISSING, "folder of slot shards")
    out: str = option(MISSING, "folder to write")
    fit_videos: int = option(
        300,
        "videos that the probe is fitted on, the first of the train split",
        unit="videos",
        least=2,
    )
    every: int = option(
        8, "frames between those that the probe is fitted on", unit="frames", least=1
    )
    splits: list[str] = option([], "splits to write; none named = all")
    videos: int = option(
        0, "only the first so many videos of a split; 0 = all", unit="videos", least=0
    )
    shard_mb: int = option(256, "size of a shard", unit="MiB", least=1)


def main(config: Match) -> None:
    """Fit, write, and print what was found. UserError for annotations that are not of the slots' scenes."""
    manifest = Manifest.load(config.data)
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("data", "out", "shard_mb")
    }
    source = {"made_by": "data_prep.match", **settings, "of": manifest.source}
    if (Path(config.out) / MANIFEST_NAME).exists() and Manifest.load(config.out).source == source:
        print(f"{config.out} already holds these matches")
        return
    presence, probe = fit_on_videos(config, manifest)
    tally = MatchCounts()
    with DatasetWriter(
        config.out,
        encoder=manifest.encoder,
        source=source,
        dtype=manifest.dtype,
        shard_mb=config.shard_mb,
        empty_slot=manifest.empty_slot,
        resume={"data": str(Path(config.data).resolve())},
    ) as writer:
        for split in config.splits or manifest.splits:
            count = min(config.videos or manifest.count(split), manifest.count(split))
            known, progress = writer.split(split).written_keys, Progress(count)
            for sample in read_split(config.data, split, videos=count):
                if sample.key not in known:
                    match = match_video(sample, presence, probe)
                    tally.add(sample, match)
                    writer.split(split).add(dataclasses.replace(sample, match=match))
                progress.add()
    print(f"{config.out}: {tally.report()}")


def fit_on_videos(config: Match, manifest: Manifest) -> tuple[PresenceDetector, ObjectProbe | None]:
    """What blanks look like, and how a slot shows its object; no probe without annotations."""
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    frames = np.arange(0, manifest.frames, config.every)
    slots, known = [], []
    for sample in read_split(
        config.data,
        split,
        (SLOTS, ANNOTATION),
        videos=min(config.fit_videos, manifest.count(split)),
    ):
        slots.append(to_float32(sample.slots)[frames])  # type: ignore[arg-type]
        if (scene := AnnotatedScene.of(sample.annotation or {})) is not None:
            known.append((slots[-1][frames < len(scene.seen)], scene.at(frames)))
    presence = PresenceDetector(np.stack(slots))
    print(
        f"presence: {len(presence.blanks)} vectors of slots without an object, from {len(slots)} videos of {split}"
    )
    if not known:
        print("no annotations: slots are not matched with objects")
        return presence, None
    probe, rounds = fit_probe(known)
    explained = 1 - probe.variance / probe.spread
    print(
        f"probe: fitted on {len(known)} videos in {rounds} rounds; it explains {100 * explained[:2].mean():.1f} % of the position's "
        f"variance, {100 * explained[2:].mean():.1f} % of the attributes'"
    )
    return presence, probe


def match_video(
    sample: Sample, presence: PresenceDetector, probe: ObjectProbe | None
) -> dict[str, np.ndarray]:
    """`slot_object` (S,) int8, `present` (T, S) bool, `position` (T, S, 2) float32; from the annotation as far as it goes, then as read."""
    slots = to_float32(sample.slots)  # type: ignore[arg-type]
    slot_object, present = np.full(slots.shape[1], -1, np.int8), presence.of(slots)
    position = np.zeros((*slots.shape[:2], 2), np.float32)
    scene = AnnotatedScene.of(sample.annotation or {})
    if probe is not None and scene is not None:
        shown = min(len(slots), len(scene.seen))
        slot = probe.assign(slots[:shown], scene.at(np.arange(shown)), MAX_UNEXPLAINED)
        slot_object[slot[slot >= 0]] = scene.identity[slot >= 0]
        present[:, slot_object < 0] = False
        for k in np.flatnonzero(slot >= 0):
            present[:shown, slot[k]] = scene.seen[:shown, k]
            position[:, slot[k]] = probe.read(slots[:, slot[k]])[:, :2]
            position[:shown, slot[k]] = scene.targets[:shown, k, :2]
    return {"slot_object": slot_object, "present": present, "position": position}


class MatchCounts:
    """What was matched and, where there is truth, how much of it is right."""

    def __init__(self) -> None:
        self.videos = self.annotated = self.slots = self.matched = self.judged = 0
        self.objects = self.right = self.wrong = self.frames = self.agree = 0

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
        self.judged += 1
        self.objects += int(visible.sum())
        self.right += int((visible & same).sum())
        self.wrong += int(((match["slot_object"] >= 0) & ~same).sum())
        self.frames += present.size
        self.agree += int((match["present"] == present).sum())

    def report(self) -> str:
        lines = f"{self.videos} videos, {self.annotated} with annotations; {self.matched} of {self.slots} slots hold a known object"
        if not self.judged:
            return lines + "; no truth to compare with"
        right = f"{100 * self.right / max(1, self.objects):.2f} % of {self.objects} objects in view are in the slot they were given"
        return (
            f"{lines}; against the truth of {self.judged} videos: {right}, {self.wrong} slots were given a wrong one; "
            f"presence agrees at {100 * self.agree / max(1, self.frames):.2f} % of {self.frames} slots and frames"
        )


if __name__ == "__main__":
    launch(Match, main)
