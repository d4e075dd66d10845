"""Questions answered by their programs on events read off a rollout: no training, no seed, so what it gets wrong the world model got wrong.

    slots 0 .. 127 ──events.Reader──> History ──> World: descriptive, explanatory, counterfactual ──program──> Verdict
    worlds.npz, without object o ──> History of o's absence ──┘ asked for by get_counterfact
    slots 0 .. 159 ──> History ──> World: predictive ───────────────────────────────────────────────program──> Verdict

Attributes are the annotation's, by `slot_object`. A program that does not run (it asks for the one collision of two objects, and none was
read off) gets "no", or no answer at all; `failed` counts these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cjepa_dist.clevrer.programs import World
from cjepa_dist.clevrer.questions import objects, program
from cjepa_dist.clevrer.scene import SHOWN, History
from cjepa_dist.data.shards import Sample
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.events import Reader, slot_object
from cjepa_dist.evaluation.vqa import TYPES, Verdict


def answer(reader: Reader, samples: Iterable[Sample]) -> tuple[list[Verdict], dict[str, Any]]:
    """Verdicts on every question of rolled-out videos, and how many programs of each type failed of how many.

    Raises UserError, naming the key, for a video without questions, without an object that slots hold, or without worlds.
    """
    verdicts: list[Verdict] = []
    asked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for sample in samples:
        if sample.questions is None:
            raise UserError(f"key {sample.key}: has no questions.json; simulate or import the data with questions")
        if sample.worlds is None and any(q["question_type"] == "counterfactual" for q in sample.questions["questions"]):
            raise UserError(f"key {sample.key}: has no worlds.npz for its counterfactual questions; roll out with mode=counterfactual")
        seen, ahead = worlds_of(reader, sample)
        scene = int(sample.questions["scene_index"])
        for question in sample.questions["questions"]:
            kind, steps = question["question_type"], program(question)
            programs = [[program(choice), steps] for choice in question["choices"]] if "choices" in question else [[steps]]
            answers = [run(ahead if kind == "predictive" else seen, parts) for parts in programs]
            asked[kind] += len(answers)
            failed[kind] += answers.count(None)
            given = [a == "yes" for a in answers] if "choices" in question else answers[0] or ""
            verdicts.append(Verdict(scene, question, given))
    return verdicts, {kind: {"failed": failed[kind], "programs": asked[kind]} for kind in TYPES}


def run(world: World, programs: list[list[str]]) -> str | None:
    """The answer, or None where the program does not run in this world."""
    try:
        return world.run(*programs)
    except UserError:
        return None


def worlds_of(reader: Reader, sample: Sample) -> tuple[World, World]:
    """A video as observed, with its worlds without an object, and as predicted beyond."""
    assert sample.slots is not None and sample.annotation is not None
    held, listed = slot_object(sample), objects(sample.annotation)

    def without(removed: int) -> History:
        assert sample.worlds is not None  # `answer` has looked
        for slot, slots in zip(sample.worlds["removed"].tolist(), sample.worlds["slots"]):
            if held[slot] == removed:
                return reader.history(slots, held, listed, removed)
        raise UserError(f"key {sample.key}: no slot holds object {removed}, so there is no world without it")

    return World(reader.history(sample.slots[:SHOWN], held, listed), without), World(reader.history(sample.slots, held, listed))
