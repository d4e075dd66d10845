"""Makes multiple-choice questions whose options are plausible and balanced.

    explanatory     why an effect (a collision, an exit) happened; the options are presences,
                    collisions and entrances that took place, causes or not
    predictive      two pairs: one will collide, the other could
    counterfactual  pairs of the remaining objects: collisions that stay, vanish or are new, and
                    pairs that never collide

    subjects (effects, objects to remove) and their options, true and false
      ──_draw_balanced──> a subject with a true and b false options ──_make_question──> JSON

In each scene options are true as often as false: `_draw_balanced` draws (a, b) of them as often as
(b, a), so that neither the number of options nor a negation tells which are right. The removed
object is never in an option. The objects of an effect are not in options of presence or entrance,
as in the real questions: these could be judged from the text alone.
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
# Template family of the choice, its objects, whether it is true before a negation.
Option = tuple[str, tuple[int, ...], bool]
WeightedOptions = list[tuple[Option, float]]
Subject = TypeVar("Subject", bound=Hashable)

# The weights below are fitted to this simulator so that the questions have the real frequencies;
# check with `python -m tools.question_statistics`.

# (a, b): a true and b false options, or the reverse; both are drawn equally often.
EXPLANATORY_COUNTS = {(2, 2): 0.16, (3, 1): 1.0, (2, 1): 0.08, (3, 0): 0.4, (4, 0): 0.21}
COUNTERFACTUAL_COUNTS = {(2, 2): 0.18, (3, 1): 1.0, (2, 1): 0.11, (1, 1): 0.01, (3, 0): 0.06}
# Weights of the kinds of options, by the effect and whether the option is true. Each kind must be
# true as often as false; also collisions that share an object with the effect ("touching") and
# those that do not ("apart"), because the text shows the difference. A collision of an object that
# exits always precedes the exit, so it is no option. (In the real questions: presence .46,
# collision .32, entrance .22, and the kind alone predicts up to 63 % of the answers.)
CAUSE_WEIGHTS = {
    ("collision", True): {"presence": 0.06, "entrance": 1.0, "apart": 0.23, "touching": 0.006},
    ("collision", False): {"presence": 0.37, "entrance": 0.073, "apart": 0.077, "touching": 1.0},
    ("out", True): {"presence": 0.05, "entrance": 0.14, "apart": 1.0},
    ("out", False): {"presence": 0.27, "entrance": 0.05, "apart": 1.0},
}
# Share of the videos with fewer than two collisions to ask about in which exits are asked about
# too.
EXIT_SHARE = 0.5
# Wrong options of predictive questions prefer objects that are in view in the last frames.
RECENT_FRAMES = 16
# Weights of pairs as options of counterfactual questions. CLEVRER draws among all pairs, so that
# most answers are the same as in the observed video. A pair that collides in only one of the two
# worlds tells more about a model, and is drawn somewhat more often here.
CHANGED_WEIGHT, COLLIDING_WEIGHT, APART_WEIGHT = 2.0, 1.0, 0.5


def explanatory_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """Up to two questions about different effects: collisions, or exits if these do not suffice."""
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
    """One question, if a pair collides in the future frames of a rollout and another never does."""
    unseen = {e.objects: e.frame for e in reversed(video.unseen) if e.kind == "collision"}
    colliding = [pair for pair, frame in unseen.items() if frame < GROUND_TRUTH_FRAMES]
    # Also pairs that collide out of view: "wrong" would not be fair for them.
    later = {(c.a, c.b) for c in video.history.collisions if c.frame >= VIDEO_FRAMES}
    never = [e.objects for e in video.pairs if e.objects not in later]
    if not colliding or not never:
        return []
    right = random.choice(colliding)
    # Pairs that have collided rarely collide again, so they are too easy as a wrong option.
    collided = {e.objects for e in video.observed}
    closest = _closest_distances(video, VIDEO_FRAMES - 1, SIMULATED_FRAMES - VIDEO_FRAMES)
    weights = [
        (0.5 if pair in collided else 1.0) * (0.3 + math.exp(-closest[pair] / 0.3))
        if pair in closest
        else 1e-3
        for pair in never
    ]
    wrong = random.choices(never, weights)[0]
    chosen: list[Option] = [("pair", right, True), ("pair", wrong, False)]
    random.shuffle(chosen)
    return [_make_question(video, describer, random, "next", (), chosen)]


def counterfactual_questions(
    video: VideoEvents, describer: Describer, random: Random
) -> list[Question]:
    """Up to two questions without different objects, preferably ones on which others depend.

    Simulates the video without each object.
    """
    collisions = [e for e in video.observed if e.kind == "collision"]
    weights = {o: 0.1 for o in video.object_ids}
    for event in collisions:
        for o in {o for cause in video.ancestors(event) for o in cause.objects} - set(
            event.objects
        ):
            weights[o] += 4.0
        for o in event.objects:
            weights[o] += 0.3
    factual = {e.objects for e in collisions}
    subjects = {o: _pair_options(video, o, factual) for o in video.object_ids}
    return [
        _make_question(video, describer, random, "counterfactual", (removed,), chosen)
        for removed, chosen in _draw_balanced(subjects, weights, COUNTERFACTUAL_COUNTS, 2, random)
    ]


def _pair_options(
    video: VideoEvents, removed: int, factual: set[tuple[int, ...]]
) -> WeightedOptions:
    """All pairs of other objects, except those that collide out of view or after the video."""
    pairs = video.counterfactual_pairs(removed)
    unclear = {(c.a, c.b) for c in video.counterfactual_history(removed).collisions} - set(pairs)
    options: WeightedOptions = []
    for event in video.pairs:
        pair = event.objects
        if removed not in pair and pair not in unclear:
            collides = pair in pairs
            if collides != (pair in factual):
                weight = CHANGED_WEIGHT
            else:
                weight = COLLIDING_WEIGHT if collides else APART_WEIGHT
            options.append((("pair", pair, collides), weight))
    return options


def _draw_balanced(
    subjects: dict[Subject, WeightedOptions],
    weights: dict[Subject, float],
    splits: dict[tuple[int, int], float],
    most: int,
    random: Random,
) -> Iterator[tuple[Subject, list[Option]]]:
    """Up to `most` subjects, each once, with two to four of its options in random order.

    A split (a, b) is drawn only if (b, a) is possible too, for the same subject or another, and
    then both equally often. Otherwise true options would be rarer than false ones, or the reverse,
    and a model that reads only the text could use it.
    """
    pools = {
        subject: [[pair for pair in options if pair[0][2] == side] for side in (True, False)]
        for subject, options in subjects.items()
    }
    for _ in range(most):
        possible = {
            split: [
                s
                for s, (true, false) in pools.items()
                if len(true) >= split[0] and len(false) >= split[1]
            ]
            for a, b in splits
            for split in ((a, b), (b, a))
        }
        fair = {
            (a, b): weight for (a, b), weight in splits.items() if possible[a, b] and possible[b, a]
        }
        if not fair:
            return
        a, b = random.choices(list(fair), list(fair.values()))[0]
        split = random.choice(((a, b), (b, a)))
        subject = random.choices(possible[split], [weights[s] for s in possible[split]])[0]
        chosen: list[Option] = []
        for pool, count in zip(pools.pop(subject), split, strict=True):
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
    """The JSON of the question, without `question_id`.

    The executor computes every answer; it is asserted to be the expected one.
    """
    template = random.choice(TEMPLATES_BY_FAMILY[family])
    negated = "{NOT}" in template.text and random.random() < 0.5
    text, program = fill_template(
        template,
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
    return {
        "question": text,
        "question_type": template.kind,
        "program": program,
        "choices": choices,
    }


def _describe(describer: Describer, random: Random, objects: tuple[int, ...]) -> dict[str, Filler]:
    if len(objects) == 2 and random.random() < 0.5:
        objects = objects[::-1]
    return {blank: describer(o) for blank, o in zip("XY", objects, strict=False)}


def _closest_distances(video: VideoEvents, frame: int, ahead: int) -> dict[tuple[int, ...], float]:
    """Pair -> its smallest distance in the `ahead` frames after `frame` at constant velocity.

    Only objects that were in view in the last RECENT_FRAMES frames.
    """
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
