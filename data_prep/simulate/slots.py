"""State -> slots: what an object-centric encoder would give, by a frozen random map.

    position, angle, attributes, kind ──features──> 32 numbers ──frozen map──> 128, unit variance ──+ noise──> slot

The 32 features of an object in view: 1.5 x, 1.5 y; sin and cos of w x and w y for w = pi/2, pi, 2 pi; shape (3), material (2),
colour (8) and kind (object, background, empty: 3) one-hot; and TURN times sin and cos of 4 x angle, which are 0 unless it is a cube.
TURN is small: a spin is as hard to extrapolate as a collision, and would otherwise be most of a predictor's error. A
background slot and an empty slot have only their kind. An object that the edge of the view cuts is a mix of itself and the
empty slot, half of each when its centre is on the edge: entries and exits announce themselves, as they do in an image.
The map has orthonormal columns, then each of the 128 numbers is shifted and scaled to unit variance over a fixed population
of slots. Map and population depend on MAP_SEED and the slot width alone, so data sets of any seed fit together. Nothing in a
frame tells the velocity.

Noise is one draw a (video, slot, frame): a slot that is not affected by an intervention is the same, to the bit, in both
worlds (tiers clean and noisy).

Tiers: `clean` noise 0.02; `noisy` noise 0.1; `occluded` noise 0.02, and an object whose centre is hidden behind another one
shows the empty slot. The camera of that tier stands at CAMERA and looks over the ground at a low angle: an object hides what is up
to 4 radii behind it and less than 0.7 radii beside the line of sight. Truth keeps calling a hidden object present. There,
removing an object uncovers what it hid, so slots of unaffected objects may differ where it hid them.
"""

from __future__ import annotations

import functools

import numpy as np

from cjepa_dist.clevrer.scene import COLORS, MATERIALS, SHAPES, SceneObject
from data_prep.simulate.physics import RADIUS, VIEW

MAP_VERSION = 1
MAP_SEED = 20_240_601
FEATURES = 32
NOISE = {"clean": 0.02, "noisy": 0.1, "occluded": 0.02}
CAMERA = (0.0, -2.5)
TURN = 0.25  # of the features of rotation, relative to all others
_WAVES = np.array([0.5, 1.0, 2.0]) * np.pi
_ATTRIBUTES, _KIND, _TURN = 14, 27, 30  # first feature of each group
_OBJECT, _BACKGROUND, _EMPTY = range(3)


def encoder_name(tier: str) -> str:
    """What the manifest calls this encoder."""
    return f"simulated-{tier}-v{MAP_VERSION}"


def empty_slot(slot_dim: int = 128) -> np.ndarray:
    """(D,) float32: the slot without an object, before noise."""
    return _constant(_EMPTY, slot_dim)


def background_slot(slot_dim: int = 128) -> np.ndarray:
    """(D,) float32: the slot of the background, before noise."""
    return _constant(_BACKGROUND, slot_dim)


def draw_noise(
    rng: np.random.Generator, frames: int, slots: int, slot_dim: int, tier: str
) -> np.ndarray:
    """(T, S, D) float32: the noise of a video, the same in all its worlds. KeyError for an unknown tier."""
    return rng.standard_normal((frames, slots, slot_dim), np.float32) * np.float32(NOISE[tier])


def encode(
    objects: list[SceneObject],
    slot_object: np.ndarray,
    background: np.ndarray,
    position: np.ndarray,
    angle: np.ndarray,
    present: np.ndarray,
    noise: np.ndarray,
    tier: str = "clean",
) -> np.ndarray:
    """Slots (T, S, D) float32.

    `objects` all n of the scene, `slot_object` (S,) index into them or -1, `background` (S,) bool, `position` (T, n, 2) in world
    units, `angle` (T, n) in rad, `present` (T, n) bool (in view), `noise` (T, S, D).
    """
    frames, slots, slot_dim = noise.shape
    seen = present & ~hidden(position, present) if tier == "occluded" else present
    values = np.zeros((frames, slots, FEATURES), np.float32)
    values[:, background, _KIND + _BACKGROUND] = 1.0
    values[:, ~background, _KIND + _EMPTY] = 1.0
    held = np.flatnonzero(slot_object >= 0)
    who = slot_object[held]
    filled = features(objects, position, angle)[:, who]
    inside = VIEW - np.abs(position[:, who]).max(
        -1, keepdims=True
    )  # of the centre, to the nearest edge
    shown = (np.clip(inside / RADIUS, 0.0, 1.0) * 0.5 + 0.5) * seen[:, who, None]
    values[:, held] += shown.astype(np.float32) * (filled - values[:, held])
    matrix, shift = _map(slot_dim)
    # No BLAS: there a row's bits depend on its place in the product and on the number of threads, and so on workers=.
    return np.einsum("tsf,fd->tsd", values, matrix) + shift + noise


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
            values[:, i, _TURN], values[:, i, _TURN + 1] = (
                TURN * np.sin(4 * angle[:, i]),
                TURN * np.cos(4 * angle[:, i]),
            )
    values[..., _KIND + _OBJECT] = 1.0
    return values


def hidden(position: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(T, n) bool: the object's centre is behind another object in view, as seen from CAMERA."""
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


def _constant(kind: int, slot_dim: int) -> np.ndarray:
    matrix, shift = _map(slot_dim)
    return matrix[_KIND + kind] + shift


@functools.cache
def _map(slot_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The frozen map: matrix (FEATURES, D) and shift (D,), float32. ValueError if D is smaller than FEATURES."""
    if slot_dim < FEATURES:
        raise ValueError(f"slot_dim={slot_dim}: must be at least {FEATURES}")
    rng = np.random.default_rng([MAP_SEED, slot_dim])
    columns, triangle = np.linalg.qr(rng.standard_normal((slot_dim, FEATURES)))
    matrix = (columns * np.sign(np.diag(triangle))).T
    # The population: of 7 slots, 4.5 hold an object somewhere in view, 1 the background, 1.5 nothing.
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
