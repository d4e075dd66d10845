"""Questions answered by their programs on events read off a rollout: no training, no seed, so what it gets wrong the world model got wrong.

    slots 0 .. 127 ──events.Reader──> History ──> World: descriptive, explanatory, counterfactual ──program──> Verdict
    worlds.npz, without object o ──> History of o's absence ──┘ asked for by get_counterfact
    slots 0 .. 159 ──> History ──> World: predictive ───────────────────────────────────────────────program──> Verdict

Attributes are the annotation's, by `slot_object`. A program that does not run (it asks for the one collision of two objects, and none was
read off) gets "no", or no answer at all; `failed` counts these. A question that removes an object that no slot holds is answered from the
observed video, and left out of the accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cjepa_dist.clevrer.programs import World
from cjepa_dist.clevrer.questions import objects, program
from cjepa_dist.clevrer.scene import SHOWN, History
from cjepa_dist.data.counterfactual_worlds import asked_slots
from cjepa_dist.data.format.split_writer import Sample
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.event_decoder import EventDecoder, slot_object
from cjepa_dist.evaluation.verdicts import Verdict
from cjepa_dist.evaluation.vqa_metrics import TYPES


def answer(reader: EventDecoder, samples: Iterable[Sample]) -> tuple[list[Verdict], dict[str, Any]]:
    """Verdicts on every question of rolled-out videos, and how many programs of each type failed of how many.

    Raises UserError, naming the key, for a video without questions, without an object that slots hold, or without worlds.
    """
    verdicts: list[Verdict] = []
    asked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for sample in samples:
        if sample.questions is None:
            raise UserError(
                f"key {sample.key}: has no questions.json; simulate or import the data with questions"
            )
        removed = asked_slots(sample)
        known = {None, *(sample.worlds["removed"].tolist() if sample.worlds else ())}
        if missing := [slot for slot in removed if slot not in known]:
            raise UserError(
                f"key {sample.key}: has no world without slot {missing[0]} in its worlds.npz for a counterfactual question; roll out with "
                "mode=counterfactual"
            )
        left_out = iter([slot is None for slot in removed])
        seen, ahead = worlds_of(reader, sample)
        scene = int(sample.questions["scene_index"])
        for question in sample.questions["questions"]:
            kind, steps = question["question_type"], program(question)
            programs = (
                [[program(choice), steps] for choice in question["choices"]]
                if "choices" in question
                else [[steps]]
            )
            answers = [run(ahead if kind == "predictive" else seen, parts) for parts in programs]
            asked[kind] += len(answers)
            failed[kind] += answers.count(None)
            given = [a == "yes" for a in answers] if "choices" in question else answers[0] or ""
            verdicts.append(
                Verdict(scene, question, given, kind == "counterfactual" and next(left_out))
            )
    return verdicts, {kind: {"failed": failed[kind], "programs": asked[kind]} for kind in TYPES}


def run(world: World, programs: list[list[str]]) -> str | None:
    """The answer, or None where the program does not run in this world."""
    try:
        return world.run(*programs)
    except UserError:
        return None


def worlds_of(reader: EventDecoder, sample: Sample) -> tuple[World, World]:
    """A video as observed, with its worlds without an object, and as predicted beyond."""
    assert sample.slots is not None and sample.annotation is not None
    held, listed = slot_object(sample), objects(sample.annotation)
    observed = reader.history(sample.slots[:SHOWN], held, listed)

    def without(removed: int) -> History:
        """Where no slot holds the object, the observed video: such a question is left out."""
        if removed not in held:
            return observed
        assert sample.worlds is not None  # `answer` has looked
        world = sample.worlds["removed"].tolist().index(held.tolist().index(removed))
        return reader.history(sample.worlds["slots"][world], held, listed, removed)

    return World(observed, without), World(reader.history(sample.slots, held, listed))
