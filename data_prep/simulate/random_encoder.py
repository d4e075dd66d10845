"""The built-in encoders: state -> slots by a frozen random linear map.

position, angle, attributes, kind ──features──> 32 numbers ──frozen map──> (D,) ──+ noise──> slot

The 32 features of an object in view:
- 1.5 x and 1.5 y; sin and cos of w x and w y for w = pi/2, pi, 2 pi;
- one-hot: shape (3), material (2), color (8), kind (object, background, empty: 3);
- ROTATION_SCALE times sin and cos of 4 x angle for a cube, else 0. The scale is small: rotation is
  as hard to extrapolate as a collision, and would otherwise make up most of a predictor's error.

A background slot and an empty slot have only their kind. At the edge of the view an object is a
mixture of itself and the empty slot, half of each when its centre is on the edge. So entries and
exits are visible before they happen, as in an image. One frame does not tell the velocity.

The map has orthonormal columns. Each of the D numbers is shifted and scaled to unit variance over a
fixed population of slots. Both depend only on MAP_SEED and D, so data sets of all seeds fit
together.

With `occlusion`, an object shows the empty slot while its centre is hidden behind another object.
The camera stands at CAMERA and looks over the ground at a low angle: an object hides what is up to
4 radii behind it and less than 0.7 radii beside the line of sight. The ground truth still says that
a hidden object is present. Removing an object uncovers what it hid, so there the slots of objects
that the removal does not affect may differ too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import COLORS, MATERIALS, SHAPES, SceneObject
from cjepa_dist.errors import UserError
from data_prep.simulate.motion import RADIUS, VIEW_HALF_WIDTH
from data_prep.simulate.scene_state import SceneState

MAP_VERSION = 1
MAP_SEED = 20_240_601
FEATURES = 32
CAMERA = (0.0, -2.5)
ROTATION_SCALE = 0.25  # of the features of rotation, relative to all others
_WAVES = np.array([0.5, 1.0, 2.0]) * np.pi
_ATTRIBUTES, _KIND, _ROTATION = 14, 27, 30  # first feature of each group
_OBJECT, _BACKGROUND, _EMPTY = range(3)


@dataclass(frozen=True)
class RandomEncoder:
    """Slots by the frozen random map. `noise`: standard deviation; `occlusion`: hide objects."""

    noise: float
    occlusion: bool = False

    def __call__(self, scene: SceneState, noise: np.ndarray) -> np.ndarray:
        """`noise` (T, S, D) standard normal -> slots (T, S, D) float32."""
        frames, slots, slot_dim = noise.shape
        visible = scene.present
        if self.occlusion:
            visible = visible & ~occluded_objects(scene.position, scene.present)
        values = np.zeros((frames, slots, FEATURES), np.float32)
        values[:, scene.background, _KIND + _BACKGROUND] = 1.0
        values[:, ~scene.background, _KIND + _EMPTY] = 1.0
        held = np.flatnonzero(scene.slot_object >= 0)
        who = scene.slot_object[held]
        filled = features(scene.objects, scene.position, scene.angle)[:, who]
        # Distance of the centre to the nearest edge of the view.
        inside = VIEW_HALF_WIDTH - np.abs(scene.position[:, who]).max(-1, keepdims=True)
        share = (np.clip(inside / RADIUS, 0.0, 1.0) * 0.5 + 0.5) * visible[:, who, None]
        values[:, held] += share.astype(np.float32) * (filled - values[:, held])
        matrix, shift = _frozen_map(slot_dim)
        # No BLAS: its bits depend on a row's place in the product and on the number of threads, and
        # so on workers=.
        return np.einsum("tsf,fd->tsd", values, matrix) + shift + noise * np.float32(self.noise)


def features(objects: list[SceneObject], position: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(T, n, FEATURES) float32 of objects in view; `position` (T, n, 2), `angle` (T, n)."""
    frames, n = angle.shape
    values = np.zeros((frames, n, FEATURES), np.float32)
    values[..., :2] = 1.5 * position
    phase = position[..., None] * _WAVES  # (T, n, 2, 3)
    values[..., 2:8] = np.sin(phase).reshape(frames, n, 6)
    values[..., 8:14] = np.cos(phase).reshape(frames, n, 6)
    for i, o in enumerate(objects):
        values[:, i, _ATTRIBUTES + SHAPES.index(o.shape)] = 1.0
        values[:, i, _ATTRIBUTES + 3 + MATERIALS.index(o.material)] = 1.0
        values[:, i, _ATTRIBUTES + 5 + COLORS.index(o.color)] = 1.0
        if o.shape == "cube":
            values[:, i, _ROTATION], values[:, i, _ROTATION + 1] = (
                ROTATION_SCALE * np.sin(4 * angle[:, i]),
                ROTATION_SCALE * np.cos(4 * angle[:, i]),
            )
    values[..., _KIND + _OBJECT] = 1.0
    return values


def occluded_objects(position: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(T, n) bool: the centre is behind another object in view, as seen from CAMERA."""
    offset = position - np.array(CAMERA)
    distance = np.sqrt((offset**2).sum(-1))
    sight = offset / distance[..., None]
    # [t, i, j]: where j stands relative to the line of sight to i
    along = (offset[:, None] * sight[:, :, None]).sum(-1)
    beside = np.abs(
        offset[:, None, :, 0] * sight[:, :, None, 1] - offset[:, None, :, 1] * sight[:, :, None, 0]
    )
    behind = distance[:, :, None] - along
    covers = (
        (behind > 0.5 * RADIUS)
        & (behind < 4 * RADIUS)
        & (beside < 0.7 * RADIUS)
        & present[:, None, :]
    )
    return covers.any(-1) & present


@functools.cache
def _frozen_map(slot_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The frozen map: matrix (FEATURES, D) and shift (D,), float32.

    Raises UserError if D is smaller than FEATURES.
    """
    if slot_dim < FEATURES:
        raise UserError(f"config field slot_dim={slot_dim}: must be at least {FEATURES}")
    rng = np.random.default_rng([MAP_SEED, slot_dim])
    columns, triangle = np.linalg.qr(rng.standard_normal((slot_dim, FEATURES)))
    matrix = (columns * np.sign(np.diag(triangle))).T
    # The population: of 7 slots, 4.5 hold an object somewhere in view, 1 the background, 1.5
    # nothing.
    size = 4096
    triples = rng.integers(0, len(SHAPES) * len(MATERIALS) * len(COLORS), size)
    objects = [
        SceneObject(0, COLORS[t % 8], MATERIALS[t // 8 % 2], SHAPES[t // 16]) for t in triples
    ]
    values = features(
        objects, rng.uniform(-1, 1, (1, size, 2)), rng.uniform(0, np.pi / 2, (1, size))
    )[0].astype(np.float64)
    kind = rng.random(size) * 7
    for which, others in ((_BACKGROUND, (kind >= 4.5) & (kind < 5.5)), (_EMPTY, kind >= 5.5)):
        values[others] = 0.0
        values[others, _KIND + which] = 1.0
    population = values @ matrix
    scale = population.std(0)
    return (matrix / scale).astype(np.float32), (-population.mean(0) / scale).astype(np.float32)
