"""The events of one video, as question programs see them: entries, exits, collisions.

    History ──> VideoEvents ──> objects, their states, events, their causes, counterfactual pairs

An object exists for questions if it is in view in some frame of the video. A collision is an event
if both objects are in view at its frame. A counterfactual answer is about the frames of the video.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cjepa_dist.clevrer.scene import ATTRIBUTES, VIDEO_FRAMES, History
from cjepa_dist.errors import UserError

# An object "is moving" above this speed, in world units per video frame. New objects have .01 to
# .04.
MOVING_SPEED = 0.003


class Event(NamedTuple):
    """A start, end, in, out or collision, as `kind` says, and the ids of its objects.

    `frame` is -1 for a pair that is only possible, not observed (`all_events`).
    """

    kind: str
    frame: int
    objects: tuple[int, ...]


class VideoEvents:
    """The objects and events of one video.

    `counterfactual(object_id)` simulates the video again without that object. It is called at most
    once per object. Shapes: history.present (180, n) bool, history.velocity (180, n, 2); column i
    belongs to the object with id i.
    """

    def __init__(
        self, history: History, counterfactual: Callable[[int], History] | None = None
    ) -> None:
        self.history = history
        self._resimulate = counterfactual
        self._worlds: dict[int, History] = {}
        self._pairs: dict[int, dict[tuple[int, ...], int]] = {}
        seen = np.any(history.present[:VIDEO_FRAMES], axis=0)
        self.visible = [o for o in history.objects if seen[o.object_id]]
        self.object_ids = [o.object_id for o in self.visible]
        self.attribute = {
            name: {o.object_id: str(getattr(o, name)) for o in self.visible} for name in ATTRIBUTES
        }
        known = set(self.object_ids)
        every = [Event("in", f, (o,)) for o, f in history.entries.items() if o in known]
        every += [Event("out", f, (o,)) for o, f in history.exits.items() if o in known]
        every += [
            Event("collision", f, pair)
            for pair, f in visible_collisions(history)
            if pair[0] in known and pair[1] in known
        ]
        every.sort(key=lambda e: (e.frame, e.kind, e.objects))
        observed = [e for e in every if e.frame < VIDEO_FRAMES]
        self.start, self.end = Event("start", 0, ()), Event("end", VIDEO_FRAMES - 1, ())
        self.observed = observed  # without start and end
        self.events = [self.start, *observed, self.end]
        self.unseen = [e for e in every if e.frame >= VIDEO_FRAMES]

    @cached_property
    def moving(self) -> dict[int, list[bool]]:
        """Object id -> for each frame of the video: in view and faster than MOVING_SPEED."""
        fast = (
            np.square(self.history.velocity[:VIDEO_FRAMES]).sum(-1) > MOVING_SPEED**2
        ) & self.history.present[:VIDEO_FRAMES]
        return {o: fast[:, o].tolist() for o in self.object_ids}

    @cached_property
    def resting(self) -> dict[int, list[bool]]:
        """Object id -> for each frame of the video: in view and not moving."""
        seen = self.history.present[:VIDEO_FRAMES]
        return {
            o: [p and not m for p, m in zip(seen[:, o].tolist(), self.moving[o], strict=True)]
            for o in self.object_ids
        }

    @cached_property
    def pairs(self) -> list[Event]:
        """All unordered pairs of objects as possible collisions."""
        return [
            Event("collision", -1, (a, b) if a < b else (b, a))
            for i, a in enumerate(self.object_ids)
            for b in self.object_ids[i + 1 :]
        ]

    @cached_property
    def traces(self) -> dict[int, list[Event]]:
        """Object id -> its events in order of time."""
        traces: dict[int, list[Event]] = {o: [] for o in self.object_ids}
        for event in self.observed:
            for o in event.objects:
                traces[o].append(event)
        return traces

    def ancestors(self, event: Event) -> set[Event]:
        """The causes of `event`: what came just before it in its objects' traces, recursively."""
        found: set[Event] = set()
        front = [event]
        while front:
            effect = front.pop()
            for o in effect.objects:
                trace = self.traces[o]
                if (
                    effect in trace
                    and (index := trace.index(effect)) > 0
                    and trace[index - 1] not in found
                ):
                    found.add(trace[index - 1])
                    front.append(trace[index - 1])
        return found

    def counterfactual_history(self, removed: int) -> History:
        """What happens without the object `removed`."""
        if removed not in self._worlds:
            if self._resimulate is None:
                raise UserError(
                    f"a program asks what happens without object {removed},"
                    " but no counterfactual simulation was given"
                )
            self._worlds[removed] = self._resimulate(removed)
        return self._worlds[removed]

    def counterfactual_pairs(self, removed: int) -> dict[tuple[int, ...], int]:
        """Pairs that collide without the object `removed` -> frame of their first collision.

        Only collisions in view and within the video count.
        """
        if removed not in self._pairs:
            pairs: dict[tuple[int, ...], int] = {}
            for pair, frame in visible_collisions(self.counterfactual_history(removed)):
                if frame < VIDEO_FRAMES:
                    pairs.setdefault(pair, frame)
            self._pairs[removed] = pairs
        return self._pairs[removed]


def visible_collisions(history: History) -> list[tuple[tuple[int, ...], int]]:
    """((a, b), frame) of the collisions with both objects in view at that frame, by frame."""
    present = history.present
    return [
        ((c.a, c.b), c.frame)
        for c in history.collisions
        if present[c.frame, c.a] and present[c.frame, c.b]
    ]
