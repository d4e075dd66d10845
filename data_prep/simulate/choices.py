"""Multiple-choice questions: explanatory, predictive, counterfactual, with options that are plausible and balanced.

    explanatory     why an effect (a collision, an exit) happened: presences, collisions, entrances that truly took place, causes or not
    predictive      two pairs in view at the end or just before: one will collide, the other might
    counterfactual  pairs of the remaining objects: collisions that stay, that vanish, that are new, and pairs that never meet

A question has about as many true as false statements: `_split` takes (a, b) of them, (b, a) as often, so that neither the number
of options nor a negation says which are right. The removed object is never in an option, nor are the objects of an effect in an option
of presence or entrance (as in the real questions): those could be judged from the text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from cjepa_dist.clevrer.language import BY_FAMILY, Filler, Namer, fill, plain
from cjepa_dist.clevrer.programs import SHOWN, Event, World
from cjepa_dist.clevrer.scene import FRAMES, TRUTH_FRAMES

Question = dict[str, Any]
Option = tuple[str, tuple[int, ...], bool]  # family of the choice, its objects, whether it is true before negation
# How often a choice is of which kind, among the true ones and among the false ones: set so that each kind is true about as often as false.
# (Real questions: presence .46, collision .32, entrance .22, and a kind tells the answer up to 63 % of the time.)
CAUSES = {
    True: {"presence": 0.45, "cause_collision": 0.27, "entrance": 0.9},
    False: {"presence": 0.48, "cause_collision": 0.45, "entrance": 0.1},
}
LATELY = 16  # an object in view in the last so many frames may be in an option of a predictive question
# Weights of pairs as options of counterfactual questions. CLEVRER draws among all pairs, so that most of its answers are those of the video
# as it was; a pair that collides in only one of the two worlds says more about a model, and is drawn somewhat more often here.
CHANGED, COLLIDES, NEITHER = 2.0, 1.0, 0.5
SPLITS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3))
SPLIT_WEIGHTS = (1, 4, 4, 6, 2, 2)


def explanatory(world: World, namer: Namer, random: Random, most: int = 2) -> list[Question]:
    """Up to `most` questions; each about another effect."""
    times = Counter(e.objects for e in world.happened if e.kind == "collision")
    effects = [e for e in world.happened if (e.kind == "collision" and times[e.objects] == 1) or e.kind == "out"]
    random.shuffle(effects)
    effects.sort(key=lambda e: e.kind == "out" and random.random() < 0.6)  # collisions first: real questions ask of exits in one of nine
    questions: list[Question] = []
    for effect in effects:
        if len(questions) == most:
            break
        options = _causes(world, effect, times)
        chosen = _split(options, [CAUSES[o[2]][o[0]] / sum(p[0] == o[0] and p[2] == o[2] for p in options) for o in options], random)
        if chosen:
            family = "exit" if effect.kind == "out" else "collision"
            questions.append(_ask(world, namer, random, family, effect.objects, chosen))
    return questions


def _causes(world: World, effect: Event, times: Counter) -> list[Option]:
    causes = world.ancestors(effect)
    involved = {o for e in causes for o in e.objects}
    options: list[Option] = [("presence", (o,), o in involved) for o in world.objects if o not in effect.objects]
    for event in world.happened:
        if event.kind == "collision" and event != effect and times[event.objects] == 1:
            options.append(("cause_collision", event.objects, event in causes))
        elif event.kind == "in" and event.objects[0] not in effect.objects:
            options.append(("entrance", event.objects, event in causes))
    return options


def predictive(world: World, namer: Namer, random: Random) -> list[Question]:
    """One question if a pair collides soon after the shown frames and another, in view, does not; else none."""
    unseen = {e.objects: e.frame for e in reversed(world.unseen) if e.kind == "collision"}
    will = [pair for pair, frame in unseen.items() if frame < TRUTH_FRAMES]
    closest = _approach(world, SHOWN - 1, FRAMES - SHOWN)
    hidden = {(c.a, c.b) for c in world.history.collisions if c.frame >= SHOWN}  # also those out of view: not a fair "wrong"
    wont = [pair for pair in closest if pair not in hidden]
    if not will or not wont:
        return []
    right = random.choice(will)
    met = {e.objects for e in world.happened}  # they seldom meet again: too easy a "wrong"
    near = [(0.5 if pair in met else 1.0) * (0.3 + math.exp(-closest[pair] / 0.3)) for pair in wont]
    wrong = random.choices(wont, near)[0]
    chosen: list[Option] = [("pair", right, True), ("pair", wrong, False)]
    random.shuffle(chosen)
    return [_ask(world, namer, random, "next", (), chosen)]


def counterfactual(world: World, namer: Namer, random: Random, most: int = 2) -> list[Question]:
    """Up to `most` questions, each without another object: one re-simulation each, most likely of an object on which others depend."""
    collisions = [e for e in world.happened if e.kind == "collision"]
    if not collisions or len(world.objects) < 3:
        return []
    weights = {o: 0.1 for o in world.objects}
    for event in collisions:
        for o in {o for cause in world.ancestors(event) for o in cause.objects} - set(event.objects):
            weights[o] += 4.0
        for o in event.objects:
            weights[o] += 0.3
    questions: list[Question] = []
    factual = {e.objects for e in collisions}
    for _ in range(most):
        removed = random.choices(list(weights), list(weights.values()))[0]
        del weights[removed]
        options, likely = [], []
        pairs = world.without(removed)
        unclear = {(c.a, c.b) for c in world.resimulated(removed).collisions} - set(pairs)
        for event in world.pairs:
            pair = event.objects
            if removed in pair or pair in unclear:
                continue
            collides, before = pair in pairs, pair in factual
            options.append(("pair", pair, collides))
            likely.append(CHANGED if collides != before else COLLIDES if collides else NEITHER)
        chosen = _split(options, likely, random)
        if chosen:
            questions.append(_ask(world, namer, random, "counterfactual", (removed,), chosen))
    return questions


def _split(options: Sequence[Option], weights: Sequence[float], random: Random) -> list[Option]:
    """Two to four options, true and false ones about equal in number; [] if there are none of one side.

    A split (a, b) whose mirror (b, a) is out of reach is not drawn: the rarer side would be rarer among the options too, and a model
    that reads only the text would profit.
    """
    pools = [[(o, w) for o, w in zip(options, weights) if o[2] == side] for side in (True, False)]
    have = [len(pool) for pool in pools]
    if not all(have):
        return []
    fair = {(a, b): w for (a, b), w in zip(SPLITS, SPLIT_WEIGHTS) if max(a, b) <= min(have)}
    counts = random.choices(list(fair), list(fair.values()))[0]
    chosen: list[Option] = []
    for pool, count in zip(pools, counts):
        for _ in range(count):
            index = random.choices(range(len(pool)), [w for _, w in pool])[0]
            chosen.append(pool.pop(index)[0])
    random.shuffle(chosen)
    return chosen


def _ask(world: World, namer: Namer, random: Random, family: str, about: tuple[int, ...], options: Sequence[Option]) -> Question:
    """The question's JSON, without `question_id`. Every answer comes from the executor; the expected one is asserted."""
    form = random.choice(BY_FAMILY[family])
    negated = "{NOT}" in form.text and random.random() < 0.5
    text, program = fill(form, {"NOT": plain("NOT", "not " if negated else ""), **_named(namer, random, about)})
    choices = []
    for number, (kind, objects, true) in enumerate(options):
        words, steps = fill(random.choice(BY_FAMILY[kind]), _named(namer, random, objects))
        answer = world.run(steps, program)
        assert (answer == "yes") == (true != negated), (words, text, answer)
        choices.append({"choice_id": number, "choice": words, "program": steps, "answer": "correct" if answer == "yes" else "wrong"})
    return {"question": text, "question_type": form.kind, "program": program, "choices": choices}


def _named(namer: Namer, random: Random, objects: tuple[int, ...]) -> dict[str, Filler]:
    if len(objects) == 2 and random.random() < 0.5:
        objects = objects[::-1]
    return {blank: namer(o) for blank, o in zip("XY", objects)}


def _approach(world: World, frame: int, ahead: int) -> dict[tuple[int, ...], float]:
    """Pair lately in view -> its smallest centre distance in the `ahead` frames after `frame` if both kept their velocity."""
    seen = [o for o in world.objects if world.history.present[frame - LATELY : frame + 1, o].any()]
    place, speed = world.history.position[frame].tolist(), world.history.velocity[frame].tolist()
    found: dict[tuple[int, ...], float] = {}
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            x, y = place[b][0] - place[a][0], place[b][1] - place[a][1]
            u, v = speed[b][0] - speed[a][0], speed[b][1] - speed[a][1]
            time = min(max(-(x * u + y * v) / (u * u + v * v + 1e-9), 0.0), ahead)
            found[a, b] = math.hypot(x + u * time, y + v * time)
    return found
