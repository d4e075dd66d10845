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

import time
from dataclasses import dataclass
from pathlib import Path

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
from cjepa_dist.data.format.manifest import SKIPPED_NAME, Manifest
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.statistics import merge_shard_statistics
from cjepa_dist.data.format.writer import DatasetWriter
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.progress import Progress
from data_prep.annotations import SceneMetadata
from data_prep.catalogue import SourceVideo, VideoCatalogue
from data_prep.faults import Faults
from data_prep.partition import part_option, record_part, select_part

SAID_FROM_BYTES = 1 << 30  # of larger sources the user is told that they are read twice


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
    skip_bad: bool = option(
        False,
        "leave out videos, questions and annotations that are not sound; OUT/skipped.jsonl"
        " lists them",
    )
    redo: bool = redo_option()


def import_videos(
    config: ImportOptions,
    catalogue: VideoCatalogue,
    files: list[Path],
    made_by: str,
    *,
    metadata: SceneMetadata | None = None,
    facts: Fingerprint | None = None,
) -> None:
    """Import the videos, or this part of them, and print a summary.

    `files` are the files of the source: an import that is there, or was interrupted, counts only if
    their bytes are the same, and `facts`, what else it depends on. `metadata`: questions and
    annotations, where they are more than those that the config names. Raises UserError where `out`
    holds another import.

    All of the input is checked in one pass. Its faults are one UserError at the end, which leaves
    the whole shards to be taken up; with `skip_bad` they are left out and listed.
    """
    began, videos = time.monotonic(), catalogue.videos()
    check_not_input(config.out, config.source, config.questions, config.annotations)
    metadata = metadata or SceneMetadata(config.questions, config.annotations)
    fingerprint = {**import_fingerprint(config, files, metadata), **(facts or {})}
    source = {
        "made_by": made_by,
        "file": Path(config.source).name,
        "questions": Path(config.questions).name,
        "annotations": Path(config.annotations).name,
        "fingerprint": fingerprint,
    }
    source = record_part(source, config.part)
    if holds_already(config.out, source, redo=config.redo):
        if not config.skip_bad and (Path(config.out) / SKIPPED_NAME).exists():
            raise UserError(
                f"{config.out} holds this import without what {SKIPPED_NAME} in it lists: set"
                " skip_bad=true to take it so, or mend the source"
            )
        print(f"{config.out} already holds this import")
        return
    chosen, faults = select_part(videos, config.part), catalogue.faults
    for split in catalogue.splits:
        metadata.check_answers(split, (v.scene for v in chosen if v.split == split))
    print(catalogue.describe())
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
        waiting = {video.key for video in todo}
        for video in chosen:
            sample = Sample(video.key)
            metadata.add_to(sample, video.scene, faults)
            if video.key in waiting:
                add_video(writer, sample, video, faults)
                progress.add(sample.slots.nbytes if sample.slots is not None else 0)
        if faults.entries and not config.skip_bad:
            raise faults.error(config.source)
        writer.skipped = faults.entries
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
    if faults.entries:
        print(f"left out: {len(faults.entries)}, listed in {config.out}/{SKIPPED_NAME}")
    print(f"{len(todo)} videos in {time.monotonic() - began:.1f} s")


def add_video(writer: DatasetWriter, sample: Sample, video: SourceVideo, faults: Faults) -> None:
    """Read a video's slots and write its sample, or record why that cannot be.

    Raises UserError for a file that cannot be read, which says nothing about what is in it.
    """
    try:
        sample.slots = video.read()
        if sample.slots.dtype.kind != "f":
            raise UserError(
                "must be a float array (frames, slots, slot_dim);"
                f" it is {sample.slots.dtype} {sample.slots.shape}"
            )
        writer.split(video.split).add(sample)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        faults.add(f"{video.label}, {video.key}", str(error), scene=video.scene)


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
