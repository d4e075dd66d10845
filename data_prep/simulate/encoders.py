"""The simulated encoders by name. An encoder is a function from the state of a scene to its slots.

    SceneState, noise (T, S, D) ──encoder──> slots (T, S, D)

The built-in ones are in random_encoder.py. To add one, register it in a module of your own:

    # my_encoder.py
    from data_prep.simulate.encoders import register_encoder
    from data_prep.simulate.scene_state import objects_to_slots

    @register_encoder("position")
    def encode(scene, noise):                     # noise: standard normal, float32
        slots = 0.01 * noise
        slots[..., :2] += objects_to_slots(scene.position, scene.slot_object)
        return slots

    python -m data_prep.simulate encoder=position plugins=[my_encoder] slot_dim=8 out=DIR

All worlds of a video get the same noise, so an encoder that uses no other randomness gives an
object exactly the same slots in every world that does not change it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cjepa_dist.errors import UserError
from data_prep.simulate.random_encoder import MAP_VERSION, RandomEncoder
from data_prep.simulate.scene_state import SceneState

Encoder = Callable[[SceneState, np.ndarray], np.ndarray]


class RegisteredEncoder(NamedTuple):
    """An encoder and the version of what it computes."""

    encode: Encoder
    version: int


ENCODERS = {
    "clean": RegisteredEncoder(RandomEncoder(noise=0.02), MAP_VERSION),
    "noisy": RegisteredEncoder(RandomEncoder(noise=0.1), MAP_VERSION),
    "occluded": RegisteredEncoder(RandomEncoder(noise=0.02, occlusion=True), MAP_VERSION),
}


def register_encoder(name: str, version: int = 1) -> Callable[[Encoder], Encoder]:
    """Decorator: adds an encoder, and its name to the choices of `encoder`.

    Increase `version` when the encoder gives other slots than before: data sets keep it. Raises
    UserError if the name is taken.
    """

    def register(function: Encoder) -> Encoder:
        if name in ENCODERS:
            raise UserError(f"there is an encoder {name!r} already: choose another name")
        ENCODERS[name] = RegisteredEncoder(function, version)
        return function

    return register


def find_encoder(name: str) -> RegisteredEncoder:
    """The encoder of that name. Raises UserError with the known names."""
    if name not in ENCODERS:
        raise UserError(
            f"config field encoder={name!r}: must be one of {', '.join(ENCODERS)};"
            " plugins=[MODULE] imports a module that registers another one"
        )
    return ENCODERS[name]


def manifest_name(name: str) -> str:
    """What the manifest of a data set calls the encoder."""
    return f"simulated-{name}-v{find_encoder(name).version}"


def encode(name: str, scene: SceneState, noise: np.ndarray) -> np.ndarray:
    """Slots (T, S, D) of a scene. Raises UserError for an encoder that returns another shape."""
    slots = find_encoder(name).encode(scene, noise)
    if np.shape(slots) != noise.shape:
        raise UserError(
            f"encoder {name!r} returned slots {np.shape(slots)}; they must be {noise.shape}"
        )
    return slots


def empty_slot(name: str, slot_dim: int) -> np.ndarray:
    """(D,) float32: the slot that holds nothing, before noise."""
    slots = encode(name, SceneState.without_objects(), np.zeros((1, 1, slot_dim), np.float32))
    return slots[0, 0].astype(np.float32)
