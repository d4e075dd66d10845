"""Words of CLEVRER's questions and answers, and how a sentence becomes numbers.

    "Which ... the cube's exit?" ──split──> [which, ..., cube's, exit] ──ids──> [77, ..., 17, 31, 0, 0]  (0 = padding)

The ids are those of the public vocabulary (81 words, 21 answers, `PAD` = 0): sorted words, counted from 1.
"""

from __future__ import annotations

import functools

from cjepa_dist.errors import UserError

PAD = 0
QUESTION_WORDS = 20
CHOICE_WORDS = 12
ROW_WORDS = QUESTION_WORDS + CHOICE_WORDS

_WORDS = """
after and any are before begins between blue brown collide collides colliding collision collisions color cube cube's cube, cubes
cyan cylinder cylinder's cylinder, cylinders ends enter entering enters entrance event exit exiting exits first following for gray green
happen how if is last many material metal moving next not object object's object, objects of presence purple red removed removed,
responsible rubber scene second shape sphere sphere's sphere, spheres stationary that the there to video what when which will with without
yellow
"""
_ANSWERS = "0 1 2 3 4 5 blue brown cube cyan cylinder gray green metal no purple red rubber sphere yellow yes"

WORDS: dict[str, int] = {"PAD": PAD, **{word: i for i, word in enumerate(_WORDS.split(), 1)}}
ANSWERS: dict[str, int] = {
    "PAD": PAD,
    **{answer: i for i, answer in enumerate(_ANSWERS.split(), 1)},
}
ANSWER_NAMES: tuple[str, ...] = tuple(ANSWERS)  # answer id -> text
TYPES = ("descriptive", "explanatory", "predictive", "counterfactual")


def split(text: str) -> list[str]:
    """Words of a sentence: lower case, no question mark, commas and possessives stay with their word."""
    return text.lower().replace("?", "").strip().split(" ")


@functools.lru_cache(maxsize=1 << 16)
def encode(text: str, length: int) -> bytes:
    """The word ids of a sentence, one byte each, padded to `length`. Raises UserError naming an unknown word, or the length passed."""
    words = split(text)
    if len(words) > length:
        raise UserError(f"{text!r} has {len(words)} words, at most {length} fit")
    for word in words:
        if word not in WORDS or word == "PAD":
            raise UserError(f"unknown word {word!r} in {text!r}")
    return bytes(WORDS[word] for word in words).ljust(length, b"\0")
