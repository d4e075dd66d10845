"""Multiple-choice questions: explanatory, predictive, counterfactual, with options that are plausible and balanced.

    explanatory     why an effect (a collision, an exit) happened: presences, collisions, entrances that truly took place, causes or not
    predictive      two pairs: one will collide, the other might
    counterfactual  pairs of the remaining objects: collisions that stay, that vanish, that are new, and pairs that never meet

    subjects (effects, objects to remove) ─statements, true and false─> _fairly ─(subject, a true and b false ones)─> _ask ─> JSON

Statements are as often true as false in each scene: `_fairly` takes (a, b) of them as often as (b,
a), so that neither the number of options nor a negation says which are right. The removed object is
never in an option, nor are the objects of an effect in an option of presence or entrance (as in the
real questions): those could be judged from the text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

from cjepa_dist.clevrer.descriptions import Describer
from cjepa_dist.clevrer.events import Event, VideoEvents
from cjepa_dist.clevrer.programs import run_programs
from cjepa_dist.clevrer.scene import GROUND_TRUTH_FRAMES, SIMULATED_FRAMES, VIDEO_FRAMES
from cjepa_dist.clevrer.templates import TEMPLATES_BY_FAMILY, Filler, fill_template, fixed_filler

Question = dict[str, Any]
Option = tuple[
    str, tuple[int, ...], bool
]  # family of the choice, its objects, whether it is true before negation
WeightedOptions = list[tuple[Option, float]]
Subject = TypeVar("Subject", bound=Hashable)

# Weights below are fitted to this simulator, so that what comes out has the real shares: `python -m
# tools.question_statistics`.

# (a, b): a statements of one side and b of the other, (a, b) and (b, a) as often.
EXPLANATORY_COUNTS = {(2, 2): 0.16, (3, 1): 1.0, (2, 1): 0.08, (3, 0): 0.4, (4, 0): 0.21}
COUNTERFACTUAL_COUNTS = {(2, 2): 0.18, (3, 1): 1.0, (2, 1): 0.11, (1, 1): 0.01, (3, 0): 0.06}
# How often a choice is of which kind, by the effect, among the true and the false ones: each kind
# must be true as often as false, also a collision with an object of the effect ("touching") and one
# without ("apart"), which the text tells apart. A collision of an object that exits comes always
# before: it is no option. (Real ones: presence .46, collision .32, entrance .22, a kind tells the
# answer up to 63 %.)
CAUSE_WEIGHTS = {
    ("collision", True): {"presence": 0.06, "entrance": 1.0, "apart": 0.23, "touching": 0.006},
    ("collision", False): {"presence": 0.37, "entrance": 0.073, "apart": 0.077, "touching": 1.0},
    ("out", True): {"presence": 0.05, "entrance": 0.14, "apart": 1.0},
    ("out", False): {"presence": 0.27, "entrance": 0.05, "apart": 1.0},
}
EXIT_SHARE = 0.5  # share of videos without two collisions to ask about in which exits are asked about instead
RECENT_FRAMES = 16  # an object in view in the last so many frames is rather in a wrong option of a predictive question than another
# Weights of pairs as options of counterfactual questions. CLEVRER draws among all pairs, so that
# most of its answers are those of the video as it was; a pair that collides in only one of the two
# worlds says more about a model, and is drawn somewhat more often here.
CHANGED_WEIGHT, COLLIDING_WEIGHT, APART_WEIGHT = 2.0, 1.0, 0.5


def explanatory_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """Up to two questions, each about another effect: a collision, or where these do not suffice an exit (of real ones one in ten)."""
    times = Counter(e.objects for e in video.observed if e.kind == "collision")
    questions: list[Question] = []
    for kind, family in (
        ("collision", "collision"),
        *([("out", "exit")] if random.random() < EXIT_SHARE else []),
    ):
        effects = [e for e in video.observed if e.kind == kind and times[e.objects] < 2]
        subjects = {effect: _cause_options(video, effect, times) for effect in effects}
        for effect, chosen in _draw_balanced(
            subjects, dict.fromkeys(effects, 1.0), EXPLANATORY_COUNTS, 2 - len(questions), random
        ):
            questions.append(
                _make_question(video, describer, random, family, effect.objects, chosen)
            )
    return questions


def _cause_options(video: VideoEvents, effect: Event, times: Counter) -> WeightedOptions:
    causes = video.ancestors(effect)
    involved = {o for e in causes for o in e.objects}
    options: list[tuple[str, Option]] = [
        ("presence", ("presence", (o,), o in involved))
        for o in video.object_ids
        if o not in effect.objects
    ]
    for event in video.observed:
        touching = not set(event.objects).isdisjoint(effect.objects)
        if (
            event.kind == "collision"
            and event != effect
            and times[event.objects] == 1
            and not (touching and effect.kind == "out")
        ):
            options.append(
                (
                    "touching" if touching else "apart",
                    ("cause_collision", event.objects, event in causes),
                )
            )
        elif event.kind == "in" and not touching:
            options.append(("entrance", ("entrance", event.objects, event in causes)))
    alike = Counter((kind, option[2]) for kind, option in options)
    return [
        (option, CAUSE_WEIGHTS[effect.kind, option[2]][kind] / alike[kind, option[2]])
        for kind, option in options
    ]


def predictive_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """One question if a pair collides within the rolled-out frames after the shown ones and another never does; else none."""
    unseen = {e.objects: e.frame for e in reversed(video.unseen) if e.kind == "collision"}
    will = [pair for pair, frame in unseen.items() if frame < GROUND_TRUTH_FRAMES]
    hidden = {
        (c.a, c.b) for c in video.history.collisions if c.frame >= VIDEO_FRAMES
    }  # also those out of view: not a fair "wrong"
    wont = [e.objects for e in video.pairs if e.objects not in hidden]
    if not will or not wont:
        return []
    right = random.choice(will)
    met = {e.objects for e in video.observed}  # they seldom meet again: too easy a "wrong"
    closest = _closest_distances(video, VIDEO_FRAMES - 1, SIMULATED_FRAMES - VIDEO_FRAMES)
    near = [
        (0.5 if pair in met else 1.0) * (0.3 + math.exp(-closest[pair] / 0.3))
        if pair in closest
        else 1e-3
        for pair in wont
    ]
    wrong = random.choices(wont, near)[0]
    chosen: list[Option] = [("pair", right, True), ("pair", wrong, False)]
    random.shuffle(chosen)
    return [_make_question(video, describer, random, "next", (), chosen)]


def counterfactual_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """Up to two questions, each without another object, most likely one on which others depend. Re-simulates without each object."""
    collisions = [e for e in video.observed if e.kind == "collision"]
    often = {o: 0.1 for o in video.object_ids}
    for event in collisions:
        for o in {o for cause in video.ancestors(event) for o in cause.objects} - set(
            event.objects
        ):
            often[o] += 4.0
        for o in event.objects:
            often[o] += 0.3
    factual = {e.objects for e in collisions}
    subjects = {o: _pair_options(video, o, factual) for o in video.object_ids}
    return [
        _make_question(video, describer, random, "counterfactual", (removed,), chosen)
        for removed, chosen in _draw_balanced(subjects, often, COUNTERFACTUAL_COUNTS, 2, random)
    ]


def _pair_options(
    video: VideoEvents, removed: int, factual: set[tuple[int, ...]]
) -> WeightedOptions:
    """All pairs of the others, but for those that collide out of view or after the video."""
    pairs = video.counterfactual_pairs(removed)
    unclear = {(c.a, c.b) for c in video.counterfactual_history(removed).collisions} - set(pairs)
    options: WeightedOptions = []
    for event in video.pairs:
        pair = event.objects
        if removed not in pair and pair not in unclear:
            collides = pair in pairs
            likely = (
                CHANGED_WEIGHT
                if collides != (pair in factual)
                else COLLIDING_WEIGHT
                if collides
                else APART_WEIGHT
            )
            options.append((("pair", pair, collides), likely))
    return options


def _draw_balanced(
    subjects: dict[Subject, WeightedOptions],
    often: dict[Subject, float],
    splits: dict[tuple[int, int], float],
    most: int,
    random: Random,
) -> Iterator[tuple[Subject, list[Option]]]:
    """Up to `most` subjects, each once, with two to four of its options in random order.

    A split (a, b) is drawn only where (b, a) is within reach too, of the same subject or of
    another, and then each as often: with the rarer side rarer among the options, a model that reads
    only the text would profit.
    """
    pools = {
        subject: [[pair for pair in options if pair[0][2] == side] for side in (True, False)]
        for subject, options in subjects.items()
    }
    for _ in range(most):
        able = {
            split: [
                s
                for s, (true, false) in pools.items()
                if len(true) >= split[0] and len(false) >= split[1]
            ]
            for a, b in splits
            for split in ((a, b), (b, a))
        }
        fair = {(a, b): weight for (a, b), weight in splits.items() if able[a, b] and able[b, a]}
        if not fair:
            return
        a, b = random.choices(list(fair), list(fair.values()))[0]
        split = random.choice(((a, b), (b, a)))
        subject = random.choices(able[split], [often[s] for s in able[split]])[0]
        chosen: list[Option] = []
        for pool, count in zip(pools.pop(subject), split):
            for _ in range(count):
                index = random.choices(range(len(pool)), [weight for _, weight in pool])[0]
                chosen.append(pool.pop(index)[0])
        random.shuffle(chosen)
        yield subject, chosen


def _make_question(
    video: VideoEvents,
    describer: Describer,
    random: Random,
    family: str,
    about: tuple[int, ...],
    options: Sequence[Option],
) -> Question:
    """The question's JSON, without `question_id`. Every answer comes from the executor; the expected one is asserted."""
    form = random.choice(TEMPLATES_BY_FAMILY[family])
    negated = "{NOT}" in form.text and random.random() < 0.5
    text, program = fill_template(
        form,
        {
            "NOT": fixed_filler("NOT", "not " if negated else ""),
            **_describe(describer, random, about),
        },
    )
    choices = []
    for number, (kind, objects, true) in enumerate(options):
        words, steps = fill_template(
            random.choice(TEMPLATES_BY_FAMILY[kind]), _describe(describer, random, objects)
        )
        answer = run_programs(video, steps, program)
        assert (answer == "yes") == (true != negated), (words, text, answer)
        choices.append(
            {
                "choice_id": number,
                "choice": words,
                "program": steps,
                "answer": "correct" if answer == "yes" else "wrong",
            }
        )
    return {"question": text, "question_type": form.kind, "program": program, "choices": choices}


def _describe(describer: Describer, random: Random, objects: tuple[int, ...]) -> dict[str, Filler]:
    if len(objects) == 2 and random.random() < 0.5:
        objects = objects[::-1]
    return {blank: describer(o) for blank, o in zip("XY", objects)}


def _closest_distances(video: VideoEvents, frame: int, ahead: int) -> dict[tuple[int, ...], float]:
    """Pair lately in view -> its smallest centre distance in the `ahead` frames after `frame` if both kept their velocity."""
    seen = [
        o
        for o in video.object_ids
        if video.history.present[frame - RECENT_FRAMES : frame + 1, o].any()
    ]
    place, speed = video.history.position[frame].tolist(), video.history.velocity[frame].tolist()
    found: dict[tuple[int, ...], float] = {}
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            x, y = place[b][0] - place[a][0], place[b][1] - place[a][1]
            u, v = speed[b][0] - speed[a][0], speed[b][1] - speed[a][1]
            time = min(max(-(x * u + y * v) / (u * u + v * v + 1e-9), 0.0), ahead)
            found[a, b] = math.hypot(x + u * time, y + v * time)
    return found
