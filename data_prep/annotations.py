"""CLEVRER's questions and annotations, by scene.

    train.json, validation.json, ... ──entry by entry──> {scene: questions, compressed} ──┐
    annotation_00000.json ... ─────────────────────────> {scene: file} ──────────> SceneMetadata

A file of questions has up to 200 MB, over a gigabyte as Python objects. So its entries are read one
at a time and kept compressed.
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

CHUNK_CHARACTERS = 1 << 22  # of JSON, per read
WHITESPACE = re.compile(r"\s*")


class SceneMetadata:
    """Questions (a JSON file or a folder of them) and annotations (a folder with
    annotation_NNNNN.json at any depth); "" = none.

    `files` are all files that were found. Raises UserError, naming the file, for one that is not
    CLEVRER's, and for a scene that occurs twice.
    """

    def __init__(self, questions: str, annotations: str) -> None:
        self.question_files = find_questions(questions) if questions else []
        self.compressed = read_questions(self.question_files)
        self.annotation_files = find_annotations(annotations) if annotations else {}
        self.files = [*self.question_files, *self.annotation_files.values()]

    def questions(self, scene: int) -> dict[str, Any] | None:
        """{scene_index, video_filename, questions} of a scene, or None."""
        return (
            json.loads(zlib.decompress(self.compressed[scene]))
            if scene in self.compressed
            else None
        )

    def annotation(self, scene: int) -> dict[str, Any] | None:
        """CLEVRER's annotation of a scene, or None."""
        return read_json(self.annotation_files[scene]) if scene in self.annotation_files else None

    def report(self, scenes: Iterable[int]) -> str:
        """How many of the videos have questions and annotations, one line for each kind."""
        videos, lines = set(scenes), []
        for name, found in (
            ("questions", set(self.compressed)),
            ("annotations", set(self.annotation_files)),
        ):
            if found:
                without, unused = videos - found, found - videos
                lines.append(
                    f"{name}: {len(videos & found)} videos have some,"
                    f" {len(without)} have none{abbreviate(without)};"
                    f" {len(unused)} scenes with some have no video{abbreviate(unused)}"
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
    """{scene index: its entry, compressed}."""
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
                    f"{file}: the questions of scene {entry['scene_index']} occur twice"
                )
            scenes[entry["scene_index"]] = zlib.compress(json_bytes(entry), 1)
    return scenes


def iterate_entries(path: Path) -> Iterator[Any]:
    """The elements of the list in a JSON file, one at a time.

    A file that holds no list gives its content. Raises UserError if it is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text, at, comma = file.read(CHUNK_CHARACTERS), 0, False
            if not text.lstrip().startswith("["):
                yield json.loads(text + file.read())
                return
            at = text.index("[") + 1
            while True:
                try:
                    start = WHITESPACE.match(text, at).end()  # type: ignore[union-attr]
                    if text[start : start + 1] == "]":
                        json.loads("0" + text[start + 1 :] + file.read())  # only space may follow
                        return
                    if comma:
                        if text[start : start + 1] != ",":
                            raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
                        start = WHITESPACE.match(text, start + 1).end()  # type: ignore[union-attr]
                    entry, at = json.JSONDecoder().raw_decode(text, start)
                except json.JSONDecodeError:
                    if not (more := file.read(CHUNK_CHARACTERS)):
                        raise
                    text, at = text[at:] + more, 0
                    continue
                comma = True
                yield entry
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def abbreviate(scenes: Iterable[int], count: int = 5) -> str:
    """ " (3, 17, ...)": the lowest scenes."""
    ordered = sorted(scenes)
    text = ", ".join([*map(str, ordered[:count]), *(["..."] if len(ordered) > count else [])])
    return f" ({text})" if text else ""
