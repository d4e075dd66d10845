"""CLEVRER's questions and annotations, found by scene.

    train.json, validation.json, ... ──entry by entry──> {scene: its questions, packed} ──┐
    annotation_00000.json ... ─────────────────────────> {scene: file} ───────────────────┴──Joining──> questions, annotation of a scene

A file of questions has up to 200 MB, which as Python objects would be over a gigabyte: one entry at a time is read, and kept compressed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cjepa_dist.data.format.tar import json_bytes
from cjepa_dist.errors import UserError

CHUNK_CHARACTERS = 1 << 22  # characters of JSON read at once
WHITESPACE = re.compile(r"\s*")


class SceneMetadata:
    """Questions (a JSON file or a folder of them) and annotations (a folder of annotation_NNNNN.json at any depth); "" = none given.

    `files` are all that were found. UserError naming the file for what is none of CLEVRER's, or is there twice.
    """

    def __init__(self, questions: str, annotations: str) -> None:
        self.question_files = find_questions(questions) if questions else []
        self.packed = read_questions(self.question_files)
        self.annotation_files = find_annotations(annotations) if annotations else {}
        self.files = [*self.question_files, *self.annotation_files.values()]

    def questions(self, scene: int) -> dict[str, Any] | None:
        """{scene_index, video_filename, questions} of a scene."""
        return json.loads(zlib.decompress(self.packed[scene])) if scene in self.packed else None

    def annotation(self, scene: int) -> dict[str, Any] | None:
        """CLEVRER's annotation of a scene."""
        return read_json(self.annotation_files[scene]) if scene in self.annotation_files else None

    def report(self, scenes: Iterable[int]) -> str:
        """What was joined to the videos of `scenes` and what was not, a line each."""
        have, lines = set(scenes), []
        for name, given in (
            ("questions", set(self.packed)),
            ("annotations", set(self.annotation_files)),
        ):
            if given:
                without, unused = have - given, given - have
                lines.append(
                    f"{name}: {len(have & given)} videos have some, {len(without)} have none{abbreviate(without)}; "
                    f"{len(unused)} scenes with some have no video{abbreviate(unused)}"
                )
        return "\n".join(lines)


def find_questions(path: str) -> list[Path]:
    files = sorted(Path(path).glob("*.json")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise UserError(f"questions={path}: there is no .json file in it")
    return files


def find_annotations(path: str) -> dict[int, Path]:
    found = {
        int(match[1]): file
        for file in sorted(Path(path).rglob("*.json"))
        if (match := re.fullmatch(r"annotation_(\d+)", file.stem))
    }
    if not found:
        raise UserError(f"annotations={path}: there is no annotation_NNNNN.json in it")
    return found


def read_questions(files: list[Path]) -> dict[int, bytes]:
    """{scene index: its entry, packed}."""
    scenes: dict[int, bytes] = {}
    for file in files:
        for entry in iterate_entries(file):
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("scene_index"), int)
                or not isinstance(entry.get("questions"), list)
            ):
                expected = "a list of {scene_index, video_filename, questions}, as CLEVRER's"
                raise UserError(
                    f"{file} must be {expected}; it has {type(entry).__name__} {str(entry)[:60]!r}"
                )
            if entry["scene_index"] in scenes:
                raise UserError(
                    f"{file}: the questions of scene {entry['scene_index']} are there twice"
                )
            scenes[entry["scene_index"]] = zlib.compress(json_bytes(entry), 1)
    return scenes


def iterate_entries(path: Path) -> Iterator[Any]:
    """The elements of a JSON file's list, one at a time; of a file that is no list, what it holds. UserError if it is no JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            text, at, first = file.read(CHUNK_CHARACTERS), 0, True
            if not text.lstrip().startswith("["):
                yield json.loads(text + file.read())
                return
            at = text.index("[") + 1
            while True:
                try:
                    start = WHITESPACE.match(text, at).end()  # type: ignore[union-attr]
                    if text[start : start + 1] == "]":
                        json.loads(
                            "0" + text[start + 1 :] + file.read()
                        )  # nothing but space may follow
                        return
                    if not first:
                        if text[start : start + 1] != ",":
                            raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
                        start = WHITESPACE.match(text, start + 1).end()  # type: ignore[union-attr]
                    entry, at = json.JSONDecoder().raw_decode(text, start)
                except json.JSONDecodeError:
                    if not (more := file.read(CHUNK_CHARACTERS)):
                        raise
                    text, at = text[at:] + more, 0
                    continue
                first = False
                yield entry
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def abbreviate(scenes: Iterable[int], count: int = 5) -> str:
    ordered = sorted(scenes)
    text = ", ".join([*map(str, ordered[:count]), *(["..."] if len(ordered) > count else [])])
    return f" ({text})" if text else ""
