"""A video as it is drawn from above: worlds side by side, each with the paths of its objects.

scene_view.load_scene ──> Scene(objects, panels) ──┬── image.py: GIF and PNG
                                                   └── html.py: a figure for a web page
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import SceneObject

# The colours of CLEVR's materials, as its images show them.
OBJECT_COLOURS = {
    "gray": "#6e7681",
    "red": "#c2302e",
    "blue": "#2a4bd7",
    "green": "#2b8a1d",
    "brown": "#8a5320",
    "cyan": "#29c3c3",
    "purple": "#8a2fc9",
    "yellow": "#f5d516",
}
# Objects whose attributes are not known: no colour of CLEVR, so that nobody takes them for one.
UNKNOWN_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
UNKNOWN = "unknown"

MIN_EDGE = 0.5  # an edge is drawn where A is above it


@dataclass(frozen=True)
class DrawnObject:
    """An object as it is drawn. `shape` and `material` are CLEVRER's words, or "unknown"."""

    name: str  # as short as tells it from the other objects: "red cube"
    colour: str  # #rrggbb
    shape: str
    material: str


@dataclass(frozen=True)
class Ghost:
    """The object that a world lacks: where it is in the world that has it."""

    index: int  # in `Scene.objects`
    position: np.ndarray  # (T, 2) world units
    present: np.ndarray  # (T,) bool


@dataclass(frozen=True)
class Panel:
    """One world, from one source: the model or the simulator; n objects, T frames.

    `edges` [t, i, j] in [0, 1] is the influence of object j on i that the model sees at frame t;
    None where no graph was estimated. `contacts` are rows (frame, i, j): they touched in
    (frame - 1, frame].
    """

    title: str
    subtitle: str
    position: np.ndarray  # (T, n, 2) float32, world units
    present: np.ndarray  # (T, n) bool: in view
    edges: np.ndarray | None = None  # (T, n, n) float32
    contacts: np.ndarray | None = None  # (N, 3) int
    ghost: Ghost | None = None
    predicted_from: int = -1  # the first frame that is a prediction; -1 = none is
    predicted_title: str = ""  # the title from that frame on; "" = the same

    def edge_strength(self, frame: int) -> list[tuple[int, int, float]]:
        """The edges i < j at a frame, each with the stronger of its two directions."""
        if self.edges is None:
            return []
        adjacency = np.maximum(self.edges[frame], self.edges[frame].T)
        pairs = np.argwhere(np.triu(adjacency > MIN_EDGE, 1))
        seen = self.present[frame]
        return [(int(i), int(j), float(adjacency[i, j])) for i, j in pairs if seen[i] and seen[j]]


@dataclass(frozen=True)
class Scene:
    """A video, drawn from above.

    `low` and `high` (2,) are the corners of what is drawn, world units. The camera sees centres
    within `view` of the origin (0 = not known): objects appear and vanish at its border.
    """

    key: str  # of the video: video_00012
    caption: str  # one or two sentences
    objects: tuple[DrawnObject, ...]
    panels: tuple[Panel, ...]
    frames: int  # T
    observed: int  # frames that the model has seen; later ones it predicts
    radius: float  # of an object, world units
    low: np.ndarray
    high: np.ndarray
    view: float = 0.0


def drawn_objects(ids: Sequence[int], known: Sequence[SceneObject]) -> tuple[DrawnObject, ...]:
    """The objects `ids`, with the attributes of those in `known`."""
    by_id = {o.object_id: o for o in known}
    found = []
    for number, object_id in enumerate(ids):
        o = by_id.get(object_id)
        if o is None:
            colour = UNKNOWN_COLOURS[number % len(UNKNOWN_COLOURS)]
            found.append(DrawnObject(f"object {object_id}", colour, UNKNOWN, UNKNOWN))
        else:
            colour = OBJECT_COLOURS.get(o.color, UNKNOWN_COLOURS[number % len(UNKNOWN_COLOURS)])
            found.append(DrawnObject(short_name(o, known), colour, o.shape, o.material))
    return tuple(found)


def short_name(chosen: SceneObject, objects: Sequence[SceneObject]) -> str:
    """ "red cube", or "red metal cube" where there are two red cubes."""
    same = Counter((o.color, o.shape) for o in objects)[chosen.color, chosen.shape]
    words = (chosen.color, chosen.material if same > 1 else "", chosen.shape)
    return " ".join(filter(None, words))


def drawn_square(scene_points: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners (2,), (2,) of the square around points (N, 2), `margin` larger on each side."""
    low, high = scene_points.min(0), scene_points.max(0)
    centre, half = (low + high) / 2, float((high - low).max()) / 2 + margin
    return centre - half, centre + half
