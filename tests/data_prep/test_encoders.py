"""The built-in simulated encoders: what a slot shows, and that removals leave other slots equal."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from sklearn.linear_model import Ridge

from cjepa_dist.clevrer.scene import (
    GROUND_TRUTH_FRAMES,
    VIDEO_FRAMES,
)
from data_prep.simulate import (
    generation,
    ground_truth,
    motion,
    random_encoder,
    world,
)
from data_prep.simulate.encoders import empty_slot, encode
from data_prep.simulate.scene_state import SceneState
from tests.data_prep.scenes import affected_objects, random_layout


def probe(worlds: list[world.World], encoder: str) -> tuple[float, float, float]:
    """Linear probes of one frame: RMSE of position, R^2 of velocity; mean variance of the slots."""
    rng, x, position, velocity, everything = np.random.default_rng(1), [], [], [], []
    for w in worlds[:100]:
        slot_object, background, noise = random_layout(w, rng)
        s = ground_truth.encode_world(w, slot_object, background, noise, encoder)
        t = ground_truth.scene_arrays(w, slot_object, background)
        # Completely in view: at the edge a slot is a mixture with the empty one.
        inside = t["present"][:VIDEO_FRAMES:4] & (
            np.abs(t["position"][:VIDEO_FRAMES:4]).max(-1) < motion.VIEW_HALF_WIDTH - motion.RADIUS
        )
        x.append(s[:VIDEO_FRAMES:4][inside])
        position.append(t["position"][:VIDEO_FRAMES:4][inside])
        velocity.append(t["velocity"][:VIDEO_FRAMES:4][inside])
        everything.append(s[:VIDEO_FRAMES:4].reshape(-1, 128))
    half = sum(map(len, x[:50]))
    a, p, v = np.concatenate(x), np.concatenate(position), np.concatenate(velocity)
    read = Ridge(1e-3).fit(a[:half], p[:half]).predict(a[half:])
    moving = Ridge(1e-3).fit(a[:half], v[:half]).predict(a[half:])
    explained = 1 - ((moving - v[half:]) ** 2).mean() / v[half:].var(0).mean()
    return (
        float(np.sqrt(((read - p[half:]) ** 2).mean())),
        float(explained),
        float(np.concatenate(everything).var(0).mean()),
    )


def test_a_slot_shows_position_but_not_velocity(worlds: list[world.World]) -> None:
    rmse, explained, variance = probe(worlds, "clean")
    assert rmse < 0.02
    assert explained < 0.35  # from where it is, one guesses a little of where it goes
    assert 0.5 < variance < 2.0


def test_position_is_harder_to_read_with_more_noise(worlds: list[world.World]) -> None:
    assert 3 * probe(worlds, "clean")[0] < probe(worlds, "noisy")[0] < 0.1


def test_an_object_on_the_edge_is_half_there() -> None:
    w = generation.generate(np.random.default_rng(3))
    n = len(w.objects)
    slot_object = np.concatenate([np.arange(n), np.full(7 - n, -1)])
    background, noise = np.arange(7) == 6, np.zeros((1, 7, 128), np.float32)
    angle, present = np.zeros((1, n)), np.ones((1, n), bool)

    def at(x: float) -> np.ndarray:
        scene = SceneState(
            w.objects, slot_object, background, np.full((1, n, 2), [x, 0.0]), angle, present
        )
        return encode("clean", scene, noise)[0, 0]

    inside = motion.VIEW_HALF_WIDTH - motion.RADIUS
    full = (
        random_encoder.features(
            w.objects[:1], np.array([[[motion.VIEW_HALF_WIDTH, 0.0]]]), np.zeros((1, 1))
        )[0, 0]
        @ random_encoder._frozen_map(128)[0]
        + random_encoder._frozen_map(128)[1]
    )
    np.testing.assert_allclose(
        at(motion.VIEW_HALF_WIDTH), (full + empty_slot("clean", 128)) / 2, atol=1e-5
    )
    shares = [
        np.square(at(x) - empty_slot("clean", 128)).mean()
        for x in (inside, inside + 0.05, inside + 0.1, motion.VIEW_HALF_WIDTH)
    ]
    assert all(a > b for a, b in itertools.pairwise(shares))


def test_two_slots_at_the_same_place_with_opposite_velocities_are_equal() -> None:
    """A frame depends only on position, angle and attributes: a video played backwards is equal."""
    w = generation.generate(np.random.default_rng(5))
    slot_object, background, noise = random_layout(w, np.random.default_rng(0))
    position, _, angle, _ = ground_truth.frame_states(w.trajectories)
    present = world.visible_frames(w.trajectories)[:GROUND_TRUTH_FRAMES]
    forward = encode(
        "clean", SceneState(w.objects, slot_object, background, position, angle, present), noise
    )
    backward = SceneState(
        w.objects, slot_object, background, position[::-1], angle[::-1], present[::-1]
    )
    reverse = encode("clean", backward, noise[::-1])
    np.testing.assert_array_equal(forward, reverse[::-1])


def background_slot() -> np.ndarray:
    scene = dataclasses.replace(SceneState.without_objects(), background=np.ones(1, bool))
    return encode("clean", scene, np.zeros((1, 1, 128), np.float32))[0, 0]


def test_empty_background_and_absent_slots(worlds: list[world.World]) -> None:
    for w in worlds[:10]:
        slot_object, background, noise = random_layout(w, np.random.default_rng(0))
        s = (
            ground_truth.encode_world(w, slot_object, background, noise, "clean")
            - np.float32(0.02) * noise
        )
        present = ground_truth.scene_arrays(w, slot_object, background)["present"]
        np.testing.assert_allclose(
            s[~present & ~background],
            np.broadcast_to(empty_slot("clean", 128), s[~present & ~background].shape),
            atol=1e-5,
        )
        np.testing.assert_allclose(
            s[:, background][:, 0],
            np.broadcast_to(background_slot(), (GROUND_TRUTH_FRAMES, 128)),
            atol=1e-5,
        )
        assert np.abs(s[present] - empty_slot("clean", 128)).max(-1).min() > 0.5


def test_occluded_objects_are_behind_something(worlds: list[world.World]) -> None:
    share = []
    for w in worlds:
        position, _, _, _ = ground_truth.frame_states(w.trajectories)
        present = world.visible_frames(w.trajectories)[:GROUND_TRUTH_FRAMES]
        behind = random_encoder.occluded_objects(position, present)
        share.append(behind.sum() / present.sum())
        assert not (behind & ~present).any()
        nearest = np.hypot(*np.moveaxis(position - np.array(random_encoder.CAMERA), -1, 0))
        for t, i in np.argwhere(behind)[:50]:
            assert nearest[t][present[t]].min() < nearest[t, i]
    assert 0.01 < np.mean(share) < 0.2


def test_slots_of_unaffected_objects_are_bit_identical_without_another(
    worlds: list[world.World],
) -> None:
    for w in worlds[:40]:
        slot_object, background, noise = random_layout(w, np.random.default_rng(0))
        factual = ground_truth.encode_world(w, slot_object, background, noise, "clean")
        for removed in range(len(w.objects)):
            other = ground_truth.encode_world(
                world.counterfactual(w, removed), slot_object, background, noise, "clean"
            )
            affected = affected_objects(w, removed)
            for s in range(7):
                if slot_object[s] == removed:
                    np.testing.assert_allclose(
                        other[:, s] - np.float32(0.02) * noise[:, s],
                        np.broadcast_to(empty_slot("clean", 128), (GROUND_TRUTH_FRAMES, 128)),
                        atol=1e-5,
                    )
                elif slot_object[s] not in affected:
                    np.testing.assert_array_equal(factual[:, s], other[:, s])
