"""What the importers have in common: videos of any origin become slot shards.

[Video(split, scene, read)] ──share, in order──> read, narrow ──┐
questions, annotations by scene (joining.py) ───────────────────┴──DatasetWriter──> DIR, or DIR.partial from which the next run goes on
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from cjepa_dist.config.fields import option
from cjepa_dist.data.format.dtypes import DTYPES
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.statistics import merge_shard_statistics
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from data_prep.annotations import SceneMetadata
from data_prep.partition import part_option, record_part, select_part
from data_prep.progress import Progress

SPLIT_NAMES = {"validation": "val", "valid": "val"}  # other names of a split; unlisted ones stay
KEY_PATTERN = re.compile(r"(?:.*/)?(?:video_)?(\d+)(?:_pixels)?(?:\.mp4)?")


@dataclass
class ImportOptions:
    """Options of every importer."""

    source: str = option(MISSING, "what to import")
    out: str = option(MISSING, "folder of slot shards to make")
    questions: str = option(
        "",
        "CLEVRER questions: a JSON file, or a folder of them (train.json, validation.json, test.json)",
    )
    annotations: str = option(
        "", "folder of CLEVRER annotations: annotation_NNNNN.json at any depth"
    )
    dtype: str = option("float16", "type of the slots on disk", choices=tuple(DTYPES))
    encoder: str = option("imported", "name of what made the slots, for the manifest")
    shard_mb: int = option(256, "size of a shard", unit="MiB", least=1)
    part: str = part_option()


@dataclass
class SourceVideo:
    """A video to import: `read()` gives its slots (T, S, D), `place` names it to a person."""

    split: str
    scene: int
    place: str
    read: Callable[[], np.ndarray]

    @property
    def key(self) -> str:
        return f"video_{self.scene:05d}"


class Catalogue:
    """All videos of a source, by split and scene. `add` raises UserError for a key without a scene, a scene twice, no video."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.splits: dict[str, dict[int, SourceVideo]] = {}
        self.where: dict[int, str] = {}

    def add(
        self, split: str, key: Any, shape: Sequence[int], dtype: str, read: Callable[[], np.ndarray]
    ) -> None:
        """`dtype` "" is not known before it is read."""
        match = KEY_PATTERN.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise UserError(
                f"{self.source}: key {key!r} of split {split!r} names no scene; keys are like 0_pixels.mp4 or video_00000.mp4"
            )
        scene, place = int(match[1]), f"{split}/{key}"
        if len(shape) != 3 or (dtype and "float" not in dtype):
            it_is = f"it is {dtype or 'an array'} {tuple(shape)}"
            raise UserError(
                f"{self.source}: {place} must be a float array (frames, slots, slot_dim); {it_is}"
            )
        if scene in self.where:
            twice = f"scene {scene} is there twice, as {self.where[scene]} and as {place}"
            raise UserError(f"{self.source}: {twice}; a scene belongs to one split")
        self.where[scene] = place
        name = SPLIT_NAMES.get(split, split)
        self.splits.setdefault(name, {})[scene] = SourceVideo(name, scene, place, read)

    def videos(self) -> list[SourceVideo]:
        """In order of split and scene. UserError if there is none."""
        if not self.where:
            raise UserError(f"{self.source} holds no videos")
        return [video for videos in self.splits.values() for _, video in sorted(videos.items())]


def import_videos(
    config: ImportOptions, catalogue: Catalogue, files: list[Path], made_by: str
) -> None:
    """Import the videos (or this part of them) and print what was joined and what the conversion lost. `files` is what they come from."""
    began, videos = time.monotonic(), catalogue.videos()
    source = {
        "made_by": made_by,
        "file": Path(config.source).name,
        "questions": Path(config.questions).name,
    }
    source = record_part(
        {
            **source,
            "annotations": Path(config.annotations).name,
            "bytes": fingerprint(files)["bytes"],
        },
        config.part,
    )
    if (Path(config.out) / MANIFEST_NAME).exists() and Manifest.load(config.out).source == source:
        print(f"{config.out} already holds this import")
        return
    joining = SceneMetadata(config.questions, config.annotations)
    chosen = select_part(videos, config.part)
    resume = fingerprint([*files, *joining.files])
    with DatasetWriter(
        config.out,
        encoder=config.encoder,
        source=source,
        dtype=config.dtype,
        shard_mb=config.shard_mb,
        resume=resume,
    ) as writer:
        todo = [
            video for video in chosen if video.key not in writer.split(video.split).written_keys
        ]
        if len(todo) < len(chosen):
            print(f"goes on after {len(chosen) - len(todo)} videos in whole shards")
        progress = Progress(len(todo))
        for video in todo:
            slots = video.read()
            if slots.dtype.kind != "f":
                raise UserError(
                    f"{config.source}: {video.place} must be a float array (frames, slots, slot_dim); it is {slots.dtype}"
                )
            sample = Sample(
                video.key, slots, joining.annotation(video.scene), joining.questions(video.scene)
            )
            writer.split(video.split).add(sample)
            progress.add(slots.nbytes)
    manifest = Manifest.load(config.out)
    print(
        f"{config.out}: "
        + ", ".join(f"{split} {manifest.count(split)}" for split in manifest.splits)
        + " videos"
    )
    if joined := joining.report(catalogue.where):
        print(joined)
    lost = merge_shard_statistics(
        (entry for entries in manifest.splits.values() for entry in entries),
        manifest.frames * manifest.slots,
    )
    print(f"conversion to {config.dtype}: {lost.describe_conversion_error() if lost else 'unknown'}")
    print(f"{len(todo)} videos in {time.monotonic() - began:.1f} s")


def fingerprint(files: Iterable[Path]) -> dict[str, int]:
    """Whether files are the ones they were: their number, bytes, time of the last change. UserError if one cannot be read."""
    try:
        found = [file.stat() for file in files]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    return {
        "files": len(found),
        "bytes": sum(s.st_size for s in found),
        "changed": max((s.st_mtime_ns for s in found), default=0),
    }
