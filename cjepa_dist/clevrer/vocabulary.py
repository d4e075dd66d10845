"""The vocabulary of CLEVRER's questions and answers, and the encoding of a sentence as word ids.

    "Which ... the cube's exit?" ──tokenize──> [which, ..., cube's, exit]
                                 ──ids───────> [77, ..., 17, 31, 0, 0]  (0 = padding)

The ids are those of the public vocabulary: 81 words, 21 answers, sorted, counted from 1; PAD is 0.
"""

from __future__ import annotations

import functools

from cjepa_dist.errors import UserError

PAD = 0
MAX_QUESTION_WORDS = 20
MAX_CHOICE_WORDS = 12
MAX_TEXT_WORDS = MAX_QUESTION_WORDS + MAX_CHOICE_WORDS

_WORDS = """
after and any are before begins between blue brown collide collides colliding collision collisions
color cube cube's cube, cubes cyan cylinder cylinder's cylinder, cylinders ends enter entering
enters entrance event exit exiting exits first following for gray green happen how if is last many
material metal moving next not object object's object, objects of presence purple red removed
removed, responsible rubber scene second shape sphere sphere's sphere, spheres stationary that the
there to video what when which will with without yellow
"""
_ANSWERS = """
0 1 2 3 4 5 blue brown cube cyan cylinder gray green metal no purple red rubber sphere yellow yes
"""

WORD_IDS: dict[str, int] = {"PAD": PAD, **{word: i for i, word in enumerate(_WORDS.split(), 1)}}
ANSWER_IDS: dict[str, int] = {
    "PAD": PAD,
    **{answer: i for i, answer in enumerate(_ANSWERS.split(), 1)},
}
ANSWER_NAMES: tuple[str, ...] = tuple(ANSWER_IDS)  # answer id -> text
QUESTION_TYPES = ("descriptive", "explanatory", "predictive", "counterfactual")


def tokenize(text: str) -> list[str]:
    """Lower-case words without the question mark; a comma or possessive stays with its word."""
    return text.lower().replace("?", "").strip().split(" ")


@functools.lru_cache(maxsize=1 << 16)
def encode_text(text: str, length: int) -> bytes:
    """The word ids of a sentence, one byte each, padded to `length`.

    Raises UserError for an unknown word, and for a sentence that is too long.
    """
    words = tokenize(text)
    if len(words) > length:
        raise UserError(f"{text!r} has {len(words)} words, at most {length} fit")
    for word in words:
        if word not in WORD_IDS or word == "PAD":
            raise UserError(f"unknown word {word!r} in {text!r}")
    return bytes(WORD_IDS[word] for word in words).ljust(length, b"\0")
