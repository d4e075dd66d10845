"""What all importers share: videos of slots from any source become slot shards.

VideoCatalogue of SourceVideo(split, scene, read) ──select_part──> converted ──┐
questions and annotations by scene (annotations.py) ──────────────────────────┴──> DatasetWriter

A new importer is a schema, a catalogue and one call:

    @dataclass
    class ImportMine(ImportOptions):
        '''Turn my files of slots into slot shards.'''

    def main(config):
        catalogue = VideoCatalogue(config.source)
        for path in sorted(Path(config.source).glob("*.bin")):     # names like video_00012.bin
            catalogue.add("train", path.stem, (128, 7, 64), "float32", partial(read_slots, path))
        import_videos(config, catalogue, files=[...], made_by="import_mine")

    if __name__ == "__main__":
        launch(ImportMine, main)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from cjepa_dist.config.fields import option
from cjepa_dist.data.format.dtypes import DTYPES
from cjepa_dist.data.format.fingerprint import (
    Fingerprint,
    check_not_input,
    files_fingerprint,
    holds_already,
    redo_option,
)
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.statistics import merge_shard_statistics
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.progress import Progress
from data_prep.annotations import SceneMetadata
from data_prep.partition import part_option, record_part, select_part

SPLIT_NAMES = {"validation": "val", "valid": "val"}  # other names of a split
SAID_FROM_BYTES = 1 << 30  # of larger sources the user is told that they are read twice
KEY_PATTERN = re.compile(r"(?:.*/)?(?:video_)?(\d+)(?:_pixels)?(?:\.mp4)?")


@dataclass
class ImportOptions:
    """Options of every importer."""

    source: str = option(MISSING, "what to import", path=True)
    out: str = option(MISSING, "folder of slot shards to make", path=True)
    questions: str = option(
        "",
        "CLEVRER questions: a JSON file, or a folder of them (train.json, validation.json, ...)",
        path=True,
    )
    annotations: str = option(
        "",
        "folder of CLEVRER annotations: annotation_NNNNN.json at any depth",
        path=True,
    )
    dtype: str = option("float16", "dtype of the slots on disk", choices=tuple(DTYPES))
    encoder: str = option("imported", "name of the model that made the slots, for the manifest")
    shard_mb: int = option(256, "size of a shard", unit="MiB", least=1, most=1 << 20)
    part: str = part_option()
    redo: bool = redo_option()


@dataclass
class SourceVideo:
    """A video to import: `read()` gives its slots (T, S, D); `label` names it in messages."""

    split: str
    scene: int
    label: str
    read: Callable[[], np.ndarray]

    @property
    def key(self) -> str:
        return f"video_{self.scene:05d}"


class VideoCatalogue:
    """All videos of a source, by split and scene."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.splits: dict[str, dict[int, SourceVideo]] = {}
        self.labels: dict[int, str] = {}

    def add(
        self, split: str, key: Any, shape: Sequence[int], dtype: str, read: Callable[[], np.ndarray]
    ) -> None:
        """Add a video. `dtype` "" = not known before it is read.

        Raises UserError for a key that names no scene, a scene that is there already, and an array
        that is not (frames, slots, slot_dim) of floats.
        """
        match = KEY_PATTERN.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise UserError(
                f"{self.source}: key {key!r} of split {split!r} names no scene;"
                " keys are like 0_pixels.mp4 or video_00000.mp4"
            )
        scene, label = int(match[1]), f"{split}/{key}"
        if len(shape) != 3 or (dtype and "float" not in dtype):
            it_is = f"it is {dtype or 'an array'} {tuple(shape)}"
            raise UserError(
                f"{self.source}: {label} must be a float array (frames, slots, slot_dim); {it_is}"
            )
        if scene in self.labels:
            twice = f"scene {scene} is there twice, as {self.labels[scene]} and as {label}"
            raise UserError(f"{self.source}: {twice}; a scene belongs to one split")
        self.labels[scene] = label
        name = SPLIT_NAMES.get(split, split)
        self.splits.setdefault(name, {})[scene] = SourceVideo(name, scene, label, read)

    def videos(self) -> list[SourceVideo]:
        """The videos in order of split and scene. Raises UserError if there are none."""
        if not self.labels:
            raise UserError(f"{self.source} holds no videos")
        return [video for videos in self.splits.values() for _, video in sorted(videos.items())]


def import_videos(
    config: ImportOptions, catalogue: VideoCatalogue, files: list[Path], made_by: str
) -> None:
    """Import the videos, or this part of them, and print a summary.

    `files` are the files of the source: an import that is there, or was interrupted, counts only if
    their bytes are the same. Raises UserError where `out` holds another import.
    """
    began, videos = time.monotonic(), catalogue.videos()
    check_not_input(config.out, config.source, config.questions, config.annotations)
    metadata = SceneMetadata(config.questions, config.annotations)
    fingerprint = import_fingerprint(config, files, metadata)
    source = {
        "made_by": made_by,
        "file": Path(config.source).name,
        "questions": Path(config.questions).name,
        "annotations": Path(config.annotations).name,
        "fingerprint": fingerprint,
    }
    source = record_part(source, config.part)
    if holds_already(config.out, source, redo=config.redo):
        print(f"{config.out} already holds this import")
        return
    chosen = select_part(videos, config.part)
    with DatasetWriter(
        config.out,
        encoder=config.encoder,
        source=source,
        dtype=config.dtype,
        shard_mb=config.shard_mb,
        resume=fingerprint,
        redo=config.redo,
    ) as writer:
        todo = [
            video for video in chosen if video.key not in writer.split(video.split).written_keys
        ]
        if len(todo) < len(chosen):
            print(f"resumes after {len(chosen) - len(todo)} videos in full shards")
        progress = Progress(len(todo))
        for video in todo:
            slots = video.read()
            if slots.dtype.kind != "f":
                raise UserError(
                    f"{config.source}: {video.label} must be a float array"
                    f" (frames, slots, slot_dim); it is {slots.dtype}"
                )
            sample = Sample(
                video.key, slots, metadata.annotation(video.scene), metadata.questions(video.scene)
            )
            writer.split(video.split).add(sample)
            progress.add(slots.nbytes)
    manifest = Manifest.load(config.out)
    print(
        f"{config.out}: "
        + ", ".join(f"{split} {manifest.count(split)}" for split in manifest.splits)
        + " videos"
    )
    if report := metadata.report(catalogue.labels):
        print(report)
    statistics = merge_shard_statistics(
        (entry for entries in manifest.splits.values() for entry in entries),
        manifest.frames * manifest.slots,
    )
    conversion = statistics.describe_conversion_error() if statistics else "unknown"
    print(f"conversion to {config.dtype}: {conversion}")
    print(f"{len(todo)} videos in {time.monotonic() - began:.1f} s")


def import_fingerprint(
    config: ImportOptions, files: list[Path], metadata: SceneMetadata
) -> Fingerprint:
    """What the data set depends on: the bytes of all files, and the settings of the import.

    All files are read once for this. Raises UserError if one cannot be read.
    """
    source = Path(config.source)
    annotations = Path(config.annotations) if config.annotations else None
    size = sum(file.stat().st_size for file in files)
    if size > SAID_FROM_BYTES:
        print(f"reads {config.source}, {size / 1e9:.1f} GB, for its checksum", flush=True)
    return {
        "source": files_fingerprint(files, source if source.is_dir() else None),
        "questions": files_fingerprint(metadata.question_files),
        "annotations": files_fingerprint(metadata.annotation_files.values(), annotations),
        "encoder": config.encoder,
        "dtype": config.dtype,
    }
