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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cjepa_dist.clevrer.checks import annotation_faults, is_id, question_faults
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.tar import json_bytes
from cjepa_dist.errors import UserError
from data_prep.faults import Faults

CHUNK_CHARACTERS = 1 << 22  # of JSON, per read
WHITESPACE = re.compile(r"\s*")


class SceneMetadata:
    """Questions (a JSON file or a folder of them) and annotations (a folder with
    annotation_NNNNN.json at any depth); "" = none.

    `files` are all files that were found. Raises UserError, naming the file, for one that is not
    CLEVRER's. Faults of single questions and annotations are found by `add_to` and `check_answers`.
    """

    def __init__(self, questions: str, annotations: str) -> None:
        self.question_files = find_questions(questions) if questions else []
        self.found = read_questions(self.question_files)
        self.annotation_files = find_annotations(annotations) if annotations else {}
        self.files = [*self.question_files, *self.annotation_files.values()]
        self.stored: dict[int, StoredJson] = {}  # annotations that come with the videos

    def questions(self, scene: int) -> dict[str, Any] | None:
        """{scene_index, video_filename, questions} of a scene, or None."""
        return self.found[scene].content() if scene in self.found else None

    def annotation(self, scene: int) -> dict[str, Any] | None:
        """CLEVRER's annotation of a scene, or None."""
        return read_json(self.annotation_files[scene]) if scene in self.annotation_files else None

    def add_stored(
        self,
        scene: int,
        annotation: StoredJson | None,
        questions: StoredJson | None,
        faults: Faults,
    ) -> None:
        """What is stored beside a video of the scene; a file of CLEVRER's goes before it."""
        if annotation is not None and scene not in self.annotation_files:
            self.stored[scene] = annotation
        if questions is not None and scene not in self.found:
            try:
                entry = read_json(questions)
            except UserError as error:
                faults.add(str(questions), str(error), scene=scene, part="question")
                return
            sound = isinstance(entry, dict) and isinstance(entry.get("questions"), list)
            if sound and entry.get("scene_index") == scene:
                self.found[scene] = make_scene(questions, entry)
            else:
                expected = f"must be the questions of scene {scene}, as CLEVRER's"
                faults.add(str(questions), expected, scene=scene, part="question")

    def check_answers(self, split: str, scenes: Iterable[int]) -> None:
        """Questions without an answer are faults where others of the split have theirs."""
        with_questions = [self.found[scene] for scene in scenes if scene in self.found]
        if any(scene.answered for scene in with_questions):
            for scene in with_questions:
                text = f"has no answer, others of {split} have; give all answers or none"
                scene.faults += [(n, f"question number {n}: {text}") for n in scene.unanswered]

    def add_to(self, sample: Sample, scene: int, faults: Faults) -> None:
        """Give a sample its annotation and its questions, without those that have a fault."""
        file = self.annotation_files.get(scene) or self.stored.get(scene)
        if file is not None:
            found: Any = None
            try:
                found = read_json(file)
                if scene in self.stored and "scene_index" not in (found or ()):
                    found = {"scene_index": scene}  # JSON of another kind
                wrong = annotation_faults(found, scene)
            except UserError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                wrong = [str(error)]
            for reason in wrong:
                faults.add(str(file), reason, scene=scene, part="annotation")
            sample.annotation = None if wrong else found
        if scene in self.found:
            entry = self.found[scene]
            sample.questions = content = entry.content()
            wrong_questions = entry.faults or self.removals(content, sample.annotation)
            for _, reason in wrong_questions:
                faults.add(f"{entry.file}, scene {scene}", reason, scene=scene, part="question")
            bad = {number for number, _ in wrong_questions}
            rest = [q for n, q in enumerate(content["questions"]) if n not in bad]
            sample.questions = {**content, "questions": rest}

    def removals(
        self, content: dict[str, Any], annotation: dict[str, Any] | None
    ) -> list[tuple[int, str]]:
        """Faults of questions that only an annotation shows: which object they remove."""
        kinds = [question["question_type"] for question in content["questions"]]
        known = annotation is not None and "counterfactual" in kinds
        return question_faults(content, annotation) if known else []

    def report(self, scenes: Iterable[int]) -> str:
        """How many of the videos have questions and annotations, one line for each kind."""
        videos, lines = set(scenes), []
        for name, found in (
            ("questions", set(self.found)),
            ("annotations", {*self.annotation_files, *self.stored}),
        ):
            if found:
                without, unused = videos - found, found - videos
                lines.append(
                    f"{name}: {len(videos & found)} videos have some,"
                    f" {len(without)} have none{abbreviate(without)};"
                    f" {len(unused)} scenes with some have no video{abbreviate(unused)}"
                )
        return "\n".join(lines)


class StoredJson(Protocol):
    """JSON somewhere: a file, or a part of one. Its text is its place, for messages."""

    def read_bytes(self) -> bytes: ...


def find_questions(path: str) -> list[Path]:
    files = sorted(Path(path).glob("[!.]*.json")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise UserError(f"questions={path}: there is no .json file in it")
    return files


def find_annotations(path: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for file in sorted(Path(path).rglob("*.json")):
        if match := re.fullmatch(r"annotation_(\d{1,9})", file.stem, re.ASCII):
            if (scene := int(match[1])) in found:
                raise UserError(f"annotations={path}: scene {scene} has {found[scene]} and {file}")
            found[scene] = file
    if not found:
        raise UserError(f"annotations={path}: there is no annotation_NNNNN.json in it")
    return found


@dataclass
class SceneQuestions:
    """The questions of a scene, compressed; `faults`: (number of the question, what is wrong).

    `unanswered`: the numbers of questions without an answer.
    """

    file: StoredJson
    compressed: bytes
    faults: list[tuple[int, str]]
    answered: bool
    unanswered: list[int]

    def content(self) -> dict[str, Any]:
        return json.loads(zlib.decompress(self.compressed))


def read_questions(files: list[Path]) -> dict[int, SceneQuestions]:
    """The questions of each scene, checked. Raises UserError for what is no entry of CLEVRER's."""
    scenes: dict[int, SceneQuestions] = {}
    wrong = Faults()
    for file in files:
        for number, entry in enumerate(iterate_entries(file)):
            scene: Any = entry.get("scene_index") if isinstance(entry, dict) else None
            if not is_id(scene) or not isinstance(entry.get("questions"), list):
                expected = "must be {scene_index, video_filename, questions}, as CLEVRER's"
                wrong.add(f"{file}, entry {number}", f"{expected}; it is {str(entry)[:60]!r}")
            elif scene in scenes:
                wrong.add(str(file), f"the questions of scene {scene} occur twice")
            else:
                scenes[scene] = make_scene(file, entry)
    if wrong.entries:
        raise wrong.error("questions")
    return scenes


def make_scene(file: StoredJson, entry: dict[str, Any]) -> SceneQuestions:
    faults = question_faults(entry)
    bad = {number for number, _ in faults}
    sound = [(n, q) for n, q in enumerate(entry["questions"]) if n not in bad]
    unanswered = [
        number
        for number, question in sound
        if any(choice.get("answer") is None for choice in question.get("choices") or [question])
    ]
    compressed = zlib.compress(json_bytes(entry), 1)
    return SceneQuestions(file, compressed, faults, len(unanswered) < len(sound), unanswered)


def iterate_entries(path: Path) -> Iterator[Any]:
    """The elements of the list in a JSON file, one at a time.

    A file that holds no list gives its content. Raises UserError if it is not JSON.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_json(path: StoredJson) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def abbreviate(scenes: Iterable[int], count: int = 5) -> str:
    """ " (3, 17, ...)": the lowest scenes."""
    ordered = sorted(scenes)
    text = ", ".join([*map(str, ordered[:count]), *(["..."] if len(ordered) > count else [])])
    return f" ({text})" if text else ""
