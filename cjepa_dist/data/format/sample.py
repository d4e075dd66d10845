"""One video of a data set: its parts, and the names of the files (members) that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SLOTS = "slots.npy"
ANNOTATION = "json"
QUESTIONS = "questions.json"
TRUTH = "truth.npz"
WORLDS = "worlds.npz"
MATCH = "match.npz"
MEMBERS = (SLOTS, ANNOTATION, QUESTIONS, TRUTH, WORLDS, MATCH)

# Arrays of npz members that are slots: they are stored in the type of the slots.
SLOT_ARRAYS = ("future_slots", "counterfactual_slots", "slots")


@dataclass
class Sample:
    """One video; None = absent.

    `slots` (T, S, D); `annotation` and `questions`: CLEVRER's JSON; `truth`: the simulator's ground
    truth; `worlds`: counterfactual worlds; `match`: which slot holds which object. `stored`: the
    bytes of members that are written as they are, whatever the field of that member holds.
    """

    key: str
    slots: np.ndarray | None = None
    annotation: dict[str, Any] | None = None
    questions: dict[str, Any] | None = None
    truth: dict[str, np.ndarray] | None = None
    worlds: dict[str, np.ndarray] | None = None
    match: dict[str, np.ndarray] | None = None
    stored: dict[str, bytes] = field(default_factory=dict)


def scene_index(key: str, unknown: int = 0) -> int:
    """The scene of a sample by its key, `video_%05d`; `unknown` for a key without digits."""
    digits = "".join(c for c in key if c.isdigit())
    return int(digits) if digits else unknown
