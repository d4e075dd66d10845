"""Noun phrases that describe the objects of a scene, such as "red metal cube"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from cjepa_dist.clevrer.scene import SceneObject
from cjepa_dist.clevrer.templates import Filler
from cjepa_dist.errors import UserError

# How often a description names which attributes, if all seven choices are unique. In scenes of 3 to
# 6 objects they give about the real frequencies: .33 color + shape, .18 color, .16 shape,
# .125 material + shape, .10 all, .085 color + material, .014 material.
DESCRIPTION_WEIGHTS: dict[tuple[str, ...], float] = {
    ("color", "shape"): 0.22,
    ("color",): 0.22,
    ("shape",): 1.3,
    ("material", "shape"): 0.17,
    ("color", "material", "shape"): 0.048,
    ("color", "material"): 0.055,
    ("material",): 0.15,
}


@lru_cache(maxsize=4096)
def noun_phrase(color: str, material: str, shape: str, plural: bool = False) -> Filler:
    """The words and the filters of the named attributes; "" stands for one that is not named."""
    values = (("color", color), ("material", material), ("shape", shape))
    words = [value for name, value in values[:2] if value] + [
        (shape or "object") + ("s" if plural else "")
    ]
    return Filler(
        " ".join(words), " ".join(f"{value} filter_{name}" for name, value in values if value)
    )


class Describer:
    """Describes objects of a scene so that they are unique in it; each mention is a new draw."""

    def __init__(self, objects: Sequence[SceneObject], random: Random) -> None:
        self.random = random
        subsets = list(DESCRIPTION_WEIGHTS)
        values = [
            tuple(tuple(getattr(o, name) for name in subset) for subset in subsets) for o in objects
        ]
        times: Counter = Counter((i, value) for row in values for i, value in enumerate(row))
        self.options: dict[int, tuple[list[Filler], list[float]]] = {}
        for item, row in zip(objects, values, strict=True):
            fillers, weights = [], []
            for i, value in enumerate(row):
                if times[i, value] == 1:
                    named = dict(zip(subsets[i], value, strict=True))
                    fillers.append(
                        noun_phrase(
                            named.get("color", ""),
                            named.get("material", ""),
                            named.get("shape", ""),
                        )
                    )
                    weights.append(DESCRIPTION_WEIGHTS[subsets[i]])
            if not fillers:
                raise UserError(
                    f"object {item.object_id} has the colour, material and shape"
                    " of another object of its scene"
                )
            self.options[item.object_id] = (fillers, weights)

    def __call__(self, object_id: int) -> Filler:
        """A description of the object."""
        fillers, weights = self.options[object_id]
        return self.random.choices(fillers, weights)[0]
