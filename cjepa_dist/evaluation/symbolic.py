"""Answer questions by running their programs on events that are decoded from a rollout.

    slots 0 .. 127 ──EventDecoder──> History ──> descriptive, explanatory, counterfactual questions
    worlds.npz ────────────────────> History without an object ──┘ where a program asks for it
    slots 0 .. 159 ────────────────> History ──> predictive questions

There is no training and no seed, so the errors are those of the world model. It is a privileged
reader: which slot holds which object, and the objects' attributes, come from the annotation. A
program may fail: it asks for the one collision of two objects, and none was decoded. An option then
counts as "no", a descriptive question gets no answer; `failed` counts such programs. A question
that removes an object that no slot holds is answered from the observed video, and excluded from the
accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cjepa_dist.clevrer.events import VideoEvents
from cjepa_dist.clevrer.programs import run_programs
from cjepa_dist.clevrer.questions import program_of, scene_objects
from cjepa_dist.clevrer.scene import VIDEO_FRAMES, History
from cjepa_dist.clevrer.vocabulary import QUESTION_TYPES
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.removed_slots import slot_objects, slots_removed_by_questions
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.event_decoder import EventDecoder
from cjepa_dist.evaluation.vqa.predictions import Prediction


def answer_questions(
    decoder: EventDecoder, samples: Iterable[Sample]
) -> tuple[list[Prediction], dict[str, Any]]:
    """Predictions for all questions of rolled-out videos; {type: {"failed", "programs"}} counts.

    Raises UserError, naming the key, for a video without questions, where no file says which slot
    holds which object, or without a world that a question asks about.
    """
    predictions: list[Prediction] = []
    programs_run: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for sample in samples:
        if sample.questions is None:
            raise UserError(
                f"key {sample.key}: has no questions.json; simulate or import the data with "
                "questions"
            )
        removed = slots_removed_by_questions(sample)
        known = {None, *(sample.worlds["removed"].tolist() if sample.worlds else ())}
        if missing := [slot for slot in removed if slot not in known]:
            raise UserError(
                f"key {sample.key}: has no world without slot {missing[0]} in its worlds.npz for a "
                "counterfactual question; roll out with mode=counterfactual"
            )
        lacks_world = iter([slot is None for slot in removed])
        observed, future = decode_worlds(decoder, sample)
        scene = int(sample.questions["scene_index"])
        for question in sample.questions["questions"]:
            question_type, program = question["question_type"], program_of(question)
            programs = [[program]]
            if "choices" in question:
                programs = [[program_of(choice), program] for choice in question["choices"]]
            world = future if question_type == "predictive" else observed
            answers = [run_in_world(world, parts) for parts in programs]
            programs_run[question_type] += len(answers)
            failed[question_type] += answers.count(None)
            answer: str | list[bool] = answers[0] or ""
            if "choices" in question:
                answer = [option == "yes" for option in answers]
            excluded = question_type == "counterfactual" and next(lacks_world)
            predictions.append(Prediction(scene, question, answer, excluded))
    counts = {
        name: {"failed": failed[name], "programs": programs_run[name]} for name in QUESTION_TYPES
    }
    return predictions, counts


def run_in_world(world: VideoEvents, programs: list[list[str]]) -> str | None:
    """The answer, or None where the program fails in this world."""
    try:
        return run_programs(world, *programs)
    except UserError:
        return None


def decode_worlds(decoder: EventDecoder, sample: Sample) -> tuple[VideoEvents, VideoEvents]:
    """Events of the observed video, with its worlds without an object, and up to the future."""
    assert sample.slots is not None and sample.annotation is not None
    objects, scene = slot_objects(sample), scene_objects(sample.annotation)
    observed = decoder.history(sample.slots[:VIDEO_FRAMES], objects, scene)

    def without(removed: int) -> History:
        """The world without an object; the observed video if no slot holds that object."""
        if removed not in objects:
            return observed
        assert sample.worlds is not None  # answer_questions has checked
        world = sample.worlds["removed"].tolist().index(objects.tolist().index(removed))
        return decoder.history(sample.worlds["slots"][world], objects, scene, removed)

    future = decoder.history(sample.slots, objects, scene)
    return VideoEvents(observed, without), VideoEvents(future)
