"""Writes simulated videos in the files of real CLEVRER: `python -m data_prep.fake_clevrer out=DIR`.

    OUT/slots/clevrer_videosaur_slots.pkl         {split: {"0_pixels.mp4": (128, 7, 128)}}
    OUT/questions/{train,validation,test}.json
    OUT/annotations/train/annotation_train.zip    annotation_00000-01000/annotation_00000.json
    OUT/annotations/validation/annotation_validation.zip
    OUT/fake_clevrer.json                         the settings

For tests, and to try the whole pipeline before 10 GB are downloaded: `cjepa download mirror=OUT`
takes these files for the real ones. The same settings give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import write_json
from cjepa_dist.runtime.progress import Progress
from data_prep.fake_clevrer.content import (
    KEYS,
    is_annotated,
    odd_videos,
    published_questions,
    take_split,
)
from data_prep.fake_clevrer.stream_pickle import Stream, dump_stream
from data_prep.simulate.encoders import ENCODERS
from data_prep.simulate.settings import Simulate, check_settings
from data_prep.simulate.video import SimulatedVideo

VERSION = 1  # increase it whenever the same settings give other bytes than before
SETTINGS_NAME = "fake_clevrer.json"
QUESTIONS = {"train": "train", "val": "validation", "test": "test"}  # split: name of its file
ANNOTATIONS = {"train": "train", "val": "validation"}
FOLDER_SCENES = 1000  # annotations in a folder of the zip
OLDEST = (1980, 1, 1, 0, 0, 0)  # of all members of a zip, so that its bytes are always the same


@dataclass
class FakeClevrer:
    """Write simulated videos in the files in which real CLEVRER is published.

    A pickle of slots, questions (those of test without answers) and zips of annotations. Video N is
    that of `cjepa simulate` with the same seed, which has the ground truth. If `out` holds the same
    files already, nothing is done.
    """

    out: str = option(MISSING, "folder to write", path=True)
    train: int = option(200, "videos of the train split", unit="videos", least=1, most=10_000)
    val: int = option(50, "videos of the val split", unit="videos", least=1, most=5000)
    test: int = option(50, "videos of the test split", unit="videos", least=1, most=5000)
    seed: int = option(0, "seed of the videos", least=0, most=MAX_SEED)
    encoder: str = option(
        "clean", "the simulator's encoder of clevrer_videosaur_slots.pkl", choices=ENCODERS
    )
    savi_encoder: str = option(
        "", "the simulator's encoder of clevrer_savi_slots.pkl; empty = no such file"
    )
    plugins: list[str] = option(
        [], "Python modules to import first, such as one that registers an encoder"
    )
    keys: str = option(
        "pixels", "pixels: keys like 0_pixels.mp4; video: like video_00000.mp4", choices=KEYS
    )
    oddities: bool = option(
        True,
        "a video of 104 frames, one with 8 objects, and two without an annotation, as real files"
        " have them (if the splits have that many videos)",
    )
    workers: int = option(
        0, "processes; 0 = one per core that this process may use", least=0, most=4096
    )


def main(config: FakeClevrer) -> None:
    """Write all files, or none. UserError if `out` holds anything else."""
    out, settings = Path(config.out), describe(config)
    encoders = {"clevrer_videosaur_slots.pkl": config.encoder}
    if config.savi_encoder:
        encoders["clevrer_savi_slots.pkl"] = config.savi_encoder
    for encoder in encoders.values():
        check_settings(simulation(config, encoder))
    if (out / SETTINGS_NAME).is_file():
        if json.loads((out / SETTINGS_NAME).read_text()) != settings:
            raise UserError(f"{out} holds a fake CLEVRER of other settings; choose another out=")
        print(f"{out} already holds these files")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds something; choose another folder, or remove it first")
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        if not (partial / SETTINGS_NAME).is_file():
            raise UserError(f"{partial} is needed for writing, and holds something else; remove it")
        shutil.rmtree(partial)
    write_json(partial / SETTINGS_NAME, settings)
    (partial / "slots").mkdir()
    progress = Progress((config.train + config.val + config.test) * len(encoders))
    for number, (name, encoder) in enumerate(encoders.items()):
        with open(partial / "slots" / name, "wb") as file, contextlib.ExitStack() as stack:
            videos = odd_videos(simulation(config, encoder), config.oddities)
            stack.enter_context(contextlib.closing(videos))
            content = {}
            for split in QUESTIONS:
                chosen = take_split(videos, simulation(config, encoder), split)
                if number == 0:  # questions and annotations are the same for every encoder
                    chosen = write_beside(chosen, split, partial, config.oddities, stack)
                content[split] = Stream(keyed_slots(chosen, config.keys, progress))
            dump_stream(content, file)
    if out.is_dir():
        out.rmdir()
    os.rename(partial, out)
    print(
        f"{out}: train {config.train}, val {config.val}, test {config.test} videos as"
        f" {', '.join(encoders)}, with questions and annotations"
    )


def describe(config: FakeClevrer) -> dict[str, Any]:
    """All that the bytes depend on."""
    settings = dataclasses.asdict(config)
    return {
        "version": VERSION,
        **{name: value for name, value in settings.items() if name not in ("out", "workers")},
    }


def simulation(config: FakeClevrer, encoder: str) -> Simulate:
    """The simulator's settings: as the defaults, without what no public file holds."""
    return Simulate(
        out=config.out,
        train=config.train,
        val=config.val,
        test=config.test,
        seed=config.seed,
        encoder=encoder,
        plugins=config.plugins,
        counterfactuals="none",
        influence="none",
        dtype="float32",
        workers=config.workers,
    )


def keyed_slots(
    videos: Iterator[SimulatedVideo], keys: str, progress: Progress
) -> Iterator[tuple[str, Any]]:
    for video in videos:
        yield KEYS[keys].format(int(video.key.removeprefix("video_"))), video.slots
        progress.add()


def write_beside(
    videos: Iterator[SimulatedVideo],
    split: str,
    folder: Path,
    oddities: bool,
    stack: contextlib.ExitStack,
) -> Iterator[SimulatedVideo]:
    """Writes the questions and annotations of the videos that pass through."""
    path = folder / "questions" / f"{QUESTIONS[split]}.json"
    path.parent.mkdir(exist_ok=True)
    archive = None
    if split in ANNOTATIONS:
        name = ANNOTATIONS[split]
        zipped = folder / "annotations" / name / f"annotation_{name}.zip"
        zipped.parent.mkdir(parents=True, exist_ok=True)
        archive = stack.enter_context(zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED))
    with open(path, "w", encoding="ascii") as file:
        for number, video in enumerate(videos):
            assert video.questions is not None
            file.write(", " if number else "[")
            json.dump(published_questions(video.questions, split), file)
            if archive is not None and is_annotated(split, number, oddities):
                content = json.dumps(video.annotation.json())
                archive.writestr(annotation_member(video.annotation.scene_index), content)
            yield video
        file.write("]")


def annotation_member(scene: int) -> zipfile.ZipInfo:
    """annotation_00000-01000/annotation_00012.json"""
    first = scene // FOLDER_SCENES * FOLDER_SCENES
    folder = f"annotation_{first:05d}-{first + FOLDER_SCENES:05d}"
    member = zipfile.ZipInfo(f"{folder}/annotation_{scene:05d}.json", OLDEST)
    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return member


if __name__ == "__main__":
    launch(FakeClevrer, main)
