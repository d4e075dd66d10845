"""Slots that another program has extracted: a pickle becomes a folder of slot shards.

    FILE.pkl {split: {"0_pixels.mp4": (T, S, D)}} ──safe_pickle──> videos by scene ──┐
    train.json, validation.json, test.json ──────────questions by scene──────────────┼──DatasetWriter──> DIR
    annotation_00000.json ... ───────────────────────annotations by scene────────────┘

Keys are `N_pixels.mp4` (C-JEPA) or `video_NNNNN.mp4` (SlotFormer); N is CLEVRER's scene index, unique over all splits.
The pickle is read whole: this needs memory for one copy of it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from cjepa_dist.config import launch, option
from cjepa_dist.data.shards import DatasetWriter, Sample
from cjepa_dist.errors import UserError
from data_prep import safe_pickle

SPLITS = {"validation": "val", "valid": "val"}  # other names of a split; unlisted ones stay
KEY = re.compile(r"(?:.*/)?(?:video_)?(\d+)(?:_pixels)?(?:\.mp4)?")


@dataclass
class ImportPickle:
    """Turn a pickle of slots, {split: {"0_pixels.mp4": array (frames, slots, slot_dim)}}, into slot shards."""

    source: str = option(MISSING, "pickle (or torch.save file) of slots")
    out: str = option(MISSING, "folder of slot shards to make")
    questions: str = option("", "CLEVRER questions: a JSON file, or a folder of them (train.json, validation.json, test.json)")
    annotations: str = option("", "folder of CLEVRER annotations: annotation_NNNNN.json at any depth")
    dtype: str = option("float16", "type of the slots on disk", choices=("float16", "float32"))
    encoder: str = option("imported", "name of what made the slots, for the manifest")
    shard_mb: int = option(256, "size of a shard", unit="MiB", least=1)


def main(config: ImportPickle) -> None:
    """Write the data set and print what was joined and what the conversion to `dtype` lost."""
    began = time.monotonic()
    questions = read_questions(config.questions) if config.questions else {}
    annotations = find_annotations(config.annotations) if config.annotations else {}
    splits = read_slots(config.source)
    source = {"made_by": "data_prep.import_pickle", "file": Path(config.source).name, "questions": Path(config.questions).name}
    error, joined = ConversionError(config.dtype), {"questions": 0, "annotations": 0}
    with DatasetWriter(config.out, encoder=config.encoder, source=source, dtype=config.dtype, shard_mb=config.shard_mb) as writer:
        for split, videos in splits.items():
            for scene, slots in sorted(videos.items()):
                sample = Sample(f"video_{scene:05d}", slots, {"scene_index": scene}, questions.get(scene))
                if scene in annotations:
                    sample.annotation = read_json(annotations[scene])
                writer.split(split).add(sample)
                error.add(slots)
                joined["questions"] += scene in questions
                joined["annotations"] += scene in annotations
    scenes = {scene for videos in splits.values() for scene in videos}
    print(f"{config.out}: " + ", ".join(f"{split} {len(videos)}" for split, videos in splits.items()) + " videos")
    for name, given in (("questions", questions), ("annotations", annotations)):
        if given:
            print(f"{name}: {joined[name]} videos have some, {len(scenes - given.keys())} have none{some(scenes - given.keys())}; ", end="")
            print(f"{len(given.keys() - scenes)} scenes with some have no video{some(given.keys() - scenes)}")
    print(error.report())
    print(f"{time.monotonic() - began:.1f} s")


def read_slots(path: str) -> dict[str, dict[int, np.ndarray]]:
    """{split: {scene index: slots (T, S, D)}} of a pickle. UserError if it is anything else, or names a scene twice."""
    content = safe_pickle.load(path)
    if not isinstance(content, dict) or not all(isinstance(videos, dict) for videos in content.values()):
        raise UserError(f'{path} must hold {{split: {{"0_pixels.mp4": array}}}}; its content is {describe(content)}')
    splits: dict[str, dict[int, np.ndarray]] = {}
    where: dict[int, str] = {}
    for name, videos in content.items():
        split = SPLITS.get(str(name), str(name))
        for key, slots in videos.items():
            match = KEY.fullmatch(key) if isinstance(key, str) else None
            if match is None:
                raise UserError(f"{path}: key {key!r} of split {name!r} names no scene; keys are like 0_pixels.mp4 or video_00000.mp4")
            if not isinstance(slots, np.ndarray) or slots.dtype.kind != "f" or slots.ndim != 3:
                raise UserError(f"{path}: {name}/{key} must be a float array (frames, slots, slot_dim); it is {describe(slots)}")
            scene, place = int(match[1]), f"{name}/{key}"
            if scene in where:
                raise UserError(f"{path}: scene {scene} is there twice, as {where[scene]} and as {place}; a scene belongs to one split")
            where[scene] = place
            splits.setdefault(split, {})[scene] = slots
    if not where:
        raise UserError(f"{path} holds no videos")
    return splits


def read_questions(path: str) -> dict[int, dict[str, Any]]:
    """{scene index: {scene_index, video_filename, questions}} of a JSON file or of all in a folder."""
    files = sorted(Path(path).glob("*.json")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise UserError(f"questions={path}: there is no .json file in it")
    scenes: dict[int, dict[str, Any]] = {}
    for file in files:
        content = read_json(file)
        for entry in content if isinstance(content, list) else [content]:
            if not isinstance(entry, dict) or not isinstance(entry.get("scene_index"), int) or not isinstance(entry.get("questions"), list):
                expected = "a list of {scene_index, video_filename, questions}, as CLEVRER's"
                raise UserError(f"{file} must be {expected}; it has {describe(entry)}")
            if entry["scene_index"] in scenes:
                raise UserError(f"{file}: the questions of scene {entry['scene_index']} are there twice")
            scenes[entry["scene_index"]] = entry
    return scenes


def find_annotations(path: str) -> dict[int, Path]:
    """{scene index: file} of annotation_NNNNN.json at any depth. UserError if there are none."""
    found = {int(match[1]): file for file in Path(path).rglob("*.json") if (match := re.fullmatch(r"annotation_(\d+)", file.stem))}
    if not found:
        raise UserError(f"annotations={path}: there is no annotation_NNNNN.json in it")
    return found


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


class ConversionError:
    """What conversion to `dtype` loses, against the spread of the values."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.largest, self.squares, self.power, self.count = dtype, 0.0, 0.0, 0.0, 0

    def add(self, slots: np.ndarray) -> None:
        exact = slots.astype(np.float64)
        lost = slots.astype(self.dtype).astype(np.float64) - exact
        self.largest = max(self.largest, float(np.abs(lost).max()))
        self.squares += float((lost**2).sum())
        self.power += float((exact**2).sum())
        self.count += slots.size

    def report(self) -> str:
        relative = (self.squares / self.power) ** 0.5 if self.power else 0.0
        return f"conversion to {self.dtype}: RMS error {relative:.2e} of the values' RMS, largest error {self.largest:.2e}"


def describe(thing: Any) -> str:
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {thing.shape}"
    if isinstance(thing, dict):
        return f"a dict with keys {[*map(str, thing)][:3]}"
    return type(thing).__name__


def some(scenes: Iterable[int], count: int = 5) -> str:
    def names() -> Iterator[str]:
        ordered = sorted(scenes)
        yield from map(str, ordered[:count])
        if len(ordered) > count:
            yield "..."

    text = ", ".join(names())
    return f" ({text})" if text else ""


if __name__ == "__main__":
    launch(ImportPickle, main)
