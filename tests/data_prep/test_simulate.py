"""The simulator: physics, exactness of removals, slots, truth, formats, determinism."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymunk
import pytest
from sklearn.linear_model import Ridge

from cjepa_dist.clevrer.scene import (
    COLORS,
    GROUND_TRUTH_FRAMES,
    MATERIALS,
    SHAPES,
    SIMULATED_FRAMES,
    VIDEO_FRAMES,
)
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.verify import verify_dataset
from cjepa_dist.errors import UserError
from data_prep.simulate import __main__ as entry
from data_prep.simulate import (
    annotation,
    contacts,
    generation,
    ground_truth,
    motion,
    physics,
    random_encoder,
    world,
)
from data_prep.simulate.motion import SUBSTEPS, Body
from data_prep.simulate.settings import Simulate
from data_prep.simulate.video import SimulatedVideo, make_video

VIDEOS = 200


@pytest.fixture(scope="module")
def worlds() -> list[world.World]:
    return [generation.generate(np.random.default_rng([7, i])) for i in range(VIDEOS)]


def rows(p: motion.Trajectories, i: int) -> list[np.ndarray]:
    return [p.x[i], p.y[i], p.vx[i], p.vy[i], p.angle[i], p.spin[i], p.in_view[i]]


# ------------------------------------------------------------------------------------------------------------ physics


def test_removal_is_exact(worlds: list[world.World]) -> None:
    """Over 200 videos, removing any object leaves every object that is not downstream of it bit-identical; and it does change others."""
    kept = changed = 0
    for w in worlds:
        for removed in range(len(w.objects)):
            other, downstream = (
                world.counterfactual(w, removed),
                ground_truth.removal_changes(w, removed),
            )
            assert not any(removed in (impact.a, impact.b) for impact in other.trajectories.impacts)
            for i in set(range(len(w.objects))) - {removed}:
                same = all(
                    np.array_equal(a, b)
                    for a, b in zip(rows(w.trajectories, i), rows(other.trajectories, i))
                )
                assert same or i in downstream
                kept, changed = kept + same, changed + (not same)
    assert kept > 1000 and changed > 1000


def test_simulating_again_is_exact(worlds: list[world.World]) -> None:
    for w in worlds[:20]:
        again = physics.simulate(w.bodies)
        assert again.impacts == w.trajectories.impacts and all(
            np.array_equal(a, b)
            for i in range(len(w.bodies))
            for a, b in zip(rows(w.trajectories, i), rows(again, i))
        )


def test_a_late_start_continues_the_world(worlds: list[world.World]) -> None:
    """Simulating on from the state at a frame gives the world that was: the ground on which influence stands."""
    for w in worlds[:30]:
        for frame in (20, 60, 100):
            start, steps = frame * SUBSTEPS, 10 * SUBSTEPS
            p = physics.simulate(
                ground_truth.bodies_at(w, start),
                -1,
                steps + 1,
                w.trajectories.in_view[:, 1] <= start,
            )
            assert [impact.step + start for impact in p.impacts] == [
                impact.step
                for impact in w.trajectories.impacts
                if start < impact.step <= start + steps
            ]
            np.testing.assert_allclose(
                p.x, w.trajectories.x[:, start : start + steps + 1], atol=1e-9
            )


def test_momentum_and_energy(worlds: list[world.World]) -> None:
    """Each impulse keeps momentum and angular momentum of the pair and loses energy; between impulses nothing speeds up."""
    shape = contacts.CUBE_INERTIA
    for w in worlds[:60]:
        p = physics.simulate(w.bodies)
        for impact in p.impacts:
            if any(other.step == impact.step and other != impact for other in p.impacts):
                continue
            before, after = np.zeros(4), np.zeros(4)  # momentum, angular momentum, energy
            for b in (impact.a, impact.b):
                body, inertia = w.bodies[b], w.bodies[b].mass * (shape if w.bodies[b].cube else 1.0)
                k = impact.step
                x, y = p.x[b, k], p.y[b, k]
                for total, vx, vy, spin in (
                    (after, p.vx[b, k], p.vy[b, k], p.spin[b, k]),
                    (before, *just_before(w, b, impact)),
                ):
                    angular = body.mass * (x * vy - y * vx) + inertia * spin
                    energy = 0.5 * body.mass * (vx**2 + vy**2) + 0.5 * inertia * spin**2
                    total += np.array([body.mass * vx, body.mass * vy, angular, energy])
            np.testing.assert_allclose(before[:3], after[:3], atol=1e-12)
            assert after[3] < before[3]
        speed = np.hypot(p.vx, p.vy)
        struck = np.zeros(speed.shape, bool)
        for impact in p.impacts:
            struck[[impact.a, impact.b], impact.step] = True
        assert ((np.diff(speed, axis=1) <= 1e-15) | struck[:, 1:]).all()


def just_before(w: world.World, b: int, impact: motion.Impact) -> tuple[float, float, float]:
    """Velocity and spin of body b just before a impact: the free slide that the impact cut short, from the world stopped before it."""
    stopped = physics.simulate(w.bodies, steps=impact.step)
    k = impact.step - 1  # one grid point earlier, then slowed down by one step of friction
    vx, vy, spin = stopped.vx[b, k], stopped.vy[b, k], stopped.spin[b, k]
    speed = float(np.hypot(vx, vy))
    slower = max(0.0, 1.0 - motion.FRICTION / speed) if speed > 0 else 0.0
    less = max(0.0, 1.0 - motion.SPIN_FRICTION / abs(spin)) if spin else 0.0
    return vx * slower, vy * slower, spin * less


@pytest.mark.parametrize("cubes", [(False, False), (True, False), (False, True), (True, True)])
def test_impulses_agree_with_pymunk(cubes: tuple[bool, bool]) -> None:
    """Velocities after one collision against Chipmunk's, which steps through the touch: masses, restitution, off-centre spins."""
    rng, compared = np.random.default_rng(3), 0
    for _ in range(40):
        speed, offset, angle = (
            rng.uniform(0.02, 0.04),
            rng.uniform(-0.15, 0.15),
            rng.uniform(0.3, 1.2),
        )
        masses = rng.choice([1.0, 2.0], 2)
        bodies = [
            Body(
                -0.5,
                0.0,
                speed / SUBSTEPS,
                0.0,
                angle if cubes[0] else 0.0,
                0.0,
                masses[0],
                cubes[0],
            ),
            Body(0.1, offset, 0.0, 0.0, 0.2 if cubes[1] else 0.0, 0.0, masses[1], cubes[1]),
        ]
        p = physics.simulate(bodies)
        if len(p.impacts) != 1 or p.impacts[0].depth > 0.01:
            continue
        k = p.impacts[0].step
        space = pymunk.Space()
        space.collision_slop = 0.0
        made = []
        for body, x in zip(bodies, (p.x[0, k], p.x[1, k])):
            inertia = (
                body.mass * contacts.CUBE_INERTIA if body.cube else body.mass * motion.RADIUS**2 / 2
            )
            rigid = pymunk.Body(body.mass, inertia)
            before = float(np.hypot(body.vx, 0.0)) * SUBSTEPS
            rigid.position = (x - 0.05, body.y) if before else (x, body.y)
            rigid.velocity, rigid.angle = (
                (max(0.0, before - k * motion.FRICTION * SUBSTEPS) if before else 0.0, 0.0),
                body.angle,
            )
            h = motion.HALF_SIDE
            form = (
                pymunk.Poly(rigid, [(h, h), (-h, h), (-h, -h), (h, -h)])
                if body.cube
                else pymunk.Circle(rigid, motion.RADIUS)
            )
            form.elasticity, form.friction = contacts.RESTITUTION**0.5, 0.0
            space.add(rigid, form)
            made.append(rigid)
        for _ in range(600):
            space.step(1 / 128)
        for b, rigid in enumerate(made):
            ours = np.array([p.vx[b, k], p.vy[b, k], p.spin[b, k]]) * SUBSTEPS
            theirs = np.array([*rigid.velocity, rigid.angular_velocity])
            np.testing.assert_allclose(ours[:2], theirs[:2], atol=0.12 * speed)
            np.testing.assert_allclose(ours[2], theirs[2], atol=0.25 * speed / motion.RADIUS)
        compared += 1
    assert compared >= 15


# ------------------------------------------------------------------------------------------------------------- scenes


def test_scenes(worlds: list[world.World]) -> None:
    """Unique triples from the vocabulary, 3 to 6 objects, no pair twice, no deep overlap, enough and not too many collisions."""
    collisions, unseen = [], 0
    for w in worlds:
        triples = [(o.color, o.material, o.shape) for o in w.objects]
        assert len(set(triples)) == len(triples) and 3 <= len(triples) <= 6
        assert all(c in COLORS and m in MATERIALS and s in SHAPES for c, m, s in triples)
        assert [b.mass for b in w.bodies] == [
            {"metal": 2.0, "rubber": 1.0}[o.material] for o in w.objects
        ]
        h = world.history(w)
        pairs = [(c.a, c.b) for c in h.collisions]
        assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
        assert [c.frame for c in h.collisions] == sorted(c.frame for c in h.collisions)
        assert (
            h.present.shape == (SIMULATED_FRAMES, len(triples))
            and h.present[:VIDEO_FRAMES].any(0).all()
        )
        p = w.trajectories
        for i in range(len(triples)):
            seen = np.flatnonzero(h.present[:, i])
            assert len(seen) == seen[-1] - seen[0] + 1, "an object that has left does not come back"
            assert (
                h.entries.get(i, 0) == seen[0] and h.exits.get(i, SIMULATED_FRAMES) == seen[-1] + 1
            )
            for j in range(i):
                distance = np.hypot(
                    p.x[i, ::SUBSTEPS] - p.x[j, ::SUBSTEPS], p.y[i, ::SUBSTEPS] - p.y[j, ::SUBSTEPS]
                )
                assert (
                    distance[h.present[:, i] & h.present[:, j]].min(initial=9.0)
                    > 2 * motion.HALF_SIDE - 0.06
                )
        shown = sum(c.frame < VIDEO_FRAMES for c in h.collisions)
        collisions.append(shown)
        unseen += len(pairs) > shown
    assert min(collisions) >= 2 and 3.0 < np.mean(collisions) < 4.5
    assert unseen > 0.3 * len(worlds), "predictive questions need collisions after the end"


def test_a_sixth_of_the_objects_rest_and_the_others_move_as_stated(
    worlds: list[world.World],
) -> None:
    steps = []
    for w in worlds:
        h = world.history(w)
        steps.append(
            5 * np.hypot(*np.moveaxis(h.velocity[:VIDEO_FRAMES], -1, 0))[h.present[:VIDEO_FRAMES]]
        )
    speed = np.concatenate(steps)
    assert 0.1 < (speed == 0).mean() < 0.35
    assert 0.05 < np.median(speed[speed > 0]) < 0.12 and np.quantile(speed, 0.95) < 0.25


# -------------------------------------------------------------------------------------------------------------- slots


def arrangement(
    w: world.World, rng: np.random.Generator, tier: str = "clean"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    slot_object, background = np.full(7, -1), np.zeros(7, bool)
    order = rng.permutation(7)
    slot_object[order[: len(w.objects)]] = np.arange(len(w.objects))
    background[order[len(w.objects)]] = True
    return (
        slot_object,
        background,
        random_encoder.draw_noise(rng, GROUND_TRUTH_FRAMES, 7, 128, tier),
    )


def probe(worlds: list[world.World], tier: str) -> tuple[float, float, float]:
    """RMSE of linear position, R^2 of linear velocity from one frame, mean variance of a number of a slot."""
    rng, x, position, velocity, everything = np.random.default_rng(1), [], [], [], []
    for w in worlds[:100]:
        slot_object, background, noise = arrangement(w, rng, tier)
        s = ground_truth.encode_world(w, slot_object, background, noise, tier)
        t = ground_truth.scene_arrays(w, slot_object, background)
        # Wholly in view: at the edge a slot is a mix with the empty one, and what is linear in it is not the position.
        whole = t["present"][:VIDEO_FRAMES:4] & (
            np.abs(t["position"][:VIDEO_FRAMES:4]).max(-1) < motion.VIEW_HALF_WIDTH - motion.RADIUS
        )
        x.append(s[:VIDEO_FRAMES:4][whole])
        position.append(t["position"][:VIDEO_FRAMES:4][whole])
        velocity.append(t["velocity"][:VIDEO_FRAMES:4][whole])
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


def test_the_noisy_tier_is_harder(worlds: list[world.World]) -> None:
    assert 3 * probe(worlds, "clean")[0] < probe(worlds, "noisy")[0] < 0.1


def test_an_object_on_the_edge_is_half_there() -> None:
    w = generation.generate(np.random.default_rng(3))
    n = len(w.objects)
    slot_object = np.concatenate([np.arange(n), np.full(7 - n, -1)])
    background, noise = np.arange(7) == 6, np.zeros((1, 7, 128), np.float32)
    angle, present = np.zeros((1, n)), np.ones((1, n), bool)

    def at(x: float) -> np.ndarray:
        return random_encoder.encode(
            w.objects, slot_object, background, np.full((1, n, 2), [x, 0.0]), angle, present, noise
        )[0, 0]

    inside = motion.VIEW_HALF_WIDTH - motion.RADIUS
    full = (
        random_encoder.features(
            w.objects[:1], np.array([[[motion.VIEW_HALF_WIDTH, 0.0]]]), np.zeros((1, 1))
        )[0, 0]
        @ random_encoder._frozen_map(128)[0]
        + random_encoder._frozen_map(128)[1]
    )
    np.testing.assert_allclose(
        at(motion.VIEW_HALF_WIDTH), (full + random_encoder.empty_slot()) / 2, atol=1e-5
    )
    shares = [
        np.square(at(x) - random_encoder.empty_slot()).mean()
        for x in (inside, inside + 0.05, inside + 0.1, motion.VIEW_HALF_WIDTH)
    ]
    assert all(a > b for a, b in zip(shares, shares[1:]))


def test_two_slots_at_the_same_place_with_opposite_velocities_are_equal() -> None:
    """No feature of a frame depends on anything but the state's position, angle and attributes: the mirror in time shows the same."""
    w = generation.generate(np.random.default_rng(5))
    slot_object, background, noise = arrangement(w, np.random.default_rng(0))
    position, _, angle, _ = ground_truth.frame_states(w.trajectories)
    present = world.visible_frames(w.trajectories)[:GROUND_TRUTH_FRAMES]
    forward = random_encoder.encode(
        w.objects, slot_object, background, position, angle, present, noise
    )
    reverse = random_encoder.encode(
        w.objects, slot_object, background, position[::-1], angle[::-1], present[::-1], noise[::-1]
    )
    np.testing.assert_array_equal(forward, reverse[::-1])


def test_empty_background_and_absent_slots(worlds: list[world.World]) -> None:
    for w in worlds[:10]:
        slot_object, background, noise = arrangement(w, np.random.default_rng(0))
        s = ground_truth.encode_world(w, slot_object, background, noise, "clean") - noise
        present = ground_truth.scene_arrays(w, slot_object, background)["present"]
        np.testing.assert_allclose(
            s[~present & ~background],
            np.broadcast_to(random_encoder.empty_slot(), s[~present & ~background].shape),
            atol=1e-5,
        )
        np.testing.assert_allclose(
            s[:, background][:, 0],
            np.broadcast_to(random_encoder.background_slot(), (GROUND_TRUTH_FRAMES, 128)),
            atol=1e-5,
        )
        assert np.abs(s[present] - random_encoder.empty_slot()).max(-1).min() > 0.5


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
        slot_object, background, noise = arrangement(w, np.random.default_rng(0))
        factual = ground_truth.encode_world(w, slot_object, background, noise, "clean")
        for removed in range(len(w.objects)):
            other = ground_truth.encode_world(
                world.counterfactual(w, removed), slot_object, background, noise, "clean"
            )
            downstream = ground_truth.removal_changes(w, removed)
            for s in range(7):
                if slot_object[s] == removed:
                    np.testing.assert_allclose(
                        other[:, s] - noise[:, s],
                        np.broadcast_to(random_encoder.empty_slot(), (GROUND_TRUTH_FRAMES, 128)),
                        atol=1e-5,
                    )
                elif slot_object[s] not in downstream:
                    np.testing.assert_array_equal(factual[:, s], other[:, s])


# -------------------------------------------------------------------------------------------------------------- truth


def test_influence_needs_a_contact_and_contacts_mostly_give_it(worlds: list[world.World]) -> None:
    found = contacts = 0
    for w in worlds[:40]:
        slot_object, _, _ = arrangement(w, np.random.default_rng(0))
        touching = ground_truth.contact_rows(w.trajectories, slot_object).tolist()
        influence = {tuple(row) for row in ground_truth.influence_rows(w, slot_object, 5).tolist()}
        for frame, i, j in influence:
            assert i != j and 0 <= frame < VIDEO_FRAMES - 5
            assert any(frame < f <= frame + 5 and j in (a, b) for f, a, b in touching)
            assert any(frame < f <= frame + 5 and i in (a, b) for f, a, b in touching) or chained(
                w, slot_object, frame, i, j
            )
        for frame, i, j in touching:
            if 5 <= frame < VIDEO_FRAMES - 5:
                found += ((frame - 3, i, j) in influence) + ((frame - 3, j, i) in influence)
                contacts += 2
        assert ground_truth.influence_rows(w, slot_object, 1).shape[1] == 3
    assert found > 0.7 * contacts > 100


def chained(w: world.World, slot_object: np.ndarray, frame: int, i: int, j: int) -> bool:
    """Whether taking j away makes i touch something that it did not touch."""
    p = physics.simulate(
        ground_truth.bodies_at(w, frame * SUBSTEPS),
        int(slot_object[j]),
        5 * SUBSTEPS + 1,
        w.trajectories.in_view[:, 1] <= frame * SUBSTEPS,
    )
    return any(slot_object[i] in (impact.a, impact.b) for impact in p.impacts)


def test_annotation_is_clevrers(worlds: list[world.World]) -> None:
    for w in worlds[:5]:
        made = json.loads(json.dumps(annotation.annotate(w, 10_007).json()))
        assert list(made) == [
            "scene_index",
            "video_filename",
            "object_property",
            "motion_trajectory",
            "collision",
        ]
        assert made["video_filename"] == "video_10007.mp4" and made["scene_index"] == 10_007
        assert all(
            list(o) == ["object_id", "color", "material", "shape"] for o in made["object_property"]
        )
        assert [frame["frame_id"] for frame in made["motion_trajectory"]] == list(
            range(VIDEO_FRAMES)
        )
        h = world.history(w)
        for t in (0, 64, 127):
            for i, o in enumerate(made["motion_trajectory"][t]["objects"]):
                assert list(o) == [
                    "object_id",
                    "location",
                    "orientation",
                    "velocity",
                    "angular_velocity",
                    "inside_camera_view",
                ]
                assert o["object_id"] == i and o["inside_camera_view"] is bool(h.present[t, i])
                np.testing.assert_allclose(
                    o["location"], [*h.position[t, i], motion.RADIUS], atol=1e-4
                )
                assert all(len(o[k]) == 3 for k in ("orientation", "velocity", "angular_velocity"))
        assert [(c["frame_id"], *c["object_ids"]) for c in made["collision"]] == [
            (c.frame, c.a, c.b) for c in h.collisions if c.frame < VIDEO_FRAMES
        ]
        assert all(len(c["location"]) == 3 for c in made["collision"])


# ---------------------------------------------------------------------------------------------------------- data sets


def test_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process and two give the same bytes; the contract's members and shapes; again is nothing; other settings are an error."""
    config = Simulate(out=str(tmp_path / "a"), train=20, val=4, test=2, seed=3, workers=1)
    assert entry.main(config) == 0
    assert entry.main(dataclasses.replace(config, out=str(tmp_path / "b"), workers=2)) == 0
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path
    assert verify_dataset(tmp_path / "a") == []
    manifest = Manifest.load(tmp_path / "a")
    assert (
        manifest.encoder == "simulated-clean-v1"
        and manifest.empty_slot is not None
        and len(manifest.empty_slot) == 128
    )

    train, val = next(read_split(tmp_path / "a", "train")), list(read_split(tmp_path / "a", "val"))
    assert train.key == "video_00000" and [s.key for s in val] == [
        f"video_{10_000 + i:05d}" for i in range(4)
    ]
    assert (
        train.truth is not None
        and "influence" not in train.truth
        and train.slots is not None
        and train.slots.shape == (128, 7, 128)
    )
    for sample in val:
        t = sample.truth
        assert (
            t is not None
            and sample.questions is not None
            and sample.questions["scene_index"] == int(sample.key[-5:])
        )
        n = len(t["counterfactual_removed"])
        expected = {
            "present": (160, 7), "position": (160, 7, 2), "velocity": (160, 7, 2), "future_slots": (32, 7, 128), "empty_slot": (128,),
            "slot_object": (7,), "background": (7,), "radius": (), "influence_horizon": (), "counterfactual_slots": (n, 160, 7, 128),
            "counterfactual_position": (n, 160, 7, 2), "counterfactual_present": (n, 160, 7),
        }  # fmt: skip
        assert {k: t[k].shape for k in expected} == expected
        assert (
            t["contacts"].shape[1:] == (3,)
            and t["influence"].shape[1:] == (3,)
            and t["counterfactual_contacts"].shape[1:] == (4,)
        )
        assert (t["contacts"][:, 1] < t["contacts"][:, 2]).all()
        for w, slot in enumerate(t["counterfactual_removed"]):
            assert not t["counterfactual_present"][w, :, slot].any()
            c = t["counterfactual_contacts"]
            assert not (c[c[:, 0] == w][:, 2:] == slot).any()
    assert sum(len(s.truth["counterfactual_removed"]) for s in val if s.truth) > 0

    capsys.readouterr()
    assert entry.main(config) == 0
    assert capsys.readouterr().out.strip() == f"{config.out} already holds this data set"
    with pytest.raises(UserError, match="other settings"):
        entry.main(dataclasses.replace(config, seed=4))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        entry.main(dataclasses.replace(config, out=str(tmp_path / "c")))
    assert (tmp_path / "c" / "thesis.txt").read_text() == "mine"


def test_a_stopped_simulation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole shards of 1 MiB (some 3 videos) stay, and are not simulated again; the result has the same bytes."""
    config = Simulate(
        out=str(tmp_path / "a"),
        train=12,
        val=2,
        test=0,
        counterfactuals="none",
        influence="none",
        shard_mb=1,
        workers=1,
    )
    assert entry.main(config) == 0
    made: list[tuple[str, int]] = []

    def stopped(config: Simulate, split: str, index: int) -> SimulatedVideo:
        made.append((split, index))
        if len(made) == 11:
            raise KeyboardInterrupt
        return make_video(config, split, index)

    monkeypatch.setattr(entry, "make_video", stopped)
    config = dataclasses.replace(config, out=str(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        entry.main(config)
    assert not (tmp_path / "b").exists()
    assert entry.main(config) == 0
    assert 14 < len(made) < 11 + 14
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        ), path


def test_command_line(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The entry point with worker processes, as a user starts it."""
    done = command(
        "data_prep.simulate",
        f"out={tmp_path / 'a'}",
        "train=20",
        "val=0",
        "test=0",
        "questions=none",
        "workers=2",
    )
    assert done.returncode == 0, done.stderr
    assert "20 videos" in done.stdout and "videos/min" in done.stdout
    assert Manifest.load(tmp_path / "a").source["questions"] == []
    done = command("data_prep.simulate", f"out={tmp_path / 'a'}", "train=20", "sed=3")
    assert (
        done.returncode == 2
        and done.stderr.strip() == "error: unknown config key sed; the nearest is seed"
    )


def test_a_video_depends_on_seed_split_and_index_alone() -> None:
    base = Simulate(out="unused", train=5, val=5, test=5)
    other = dataclasses.replace(
        base, train=20_000, val=9, influence="", counterfactuals="none", questions=""
    )
    a, b = make_video(base, "val", 3), make_video(other, "val", 3)
    np.testing.assert_array_equal(a.slots, b.slots)
    assert (
        a.annotation.json()["motion_trajectory"] == b.annotation.json()["motion_trajectory"]
        and b.key == "video_20003"
    )
    for changed in (
        make_video(base, "train", 3),
        make_video(base, "val", 4),
        make_video(dataclasses.replace(base, seed=1), "val", 3),
    ):
        assert not np.array_equal(a.slots, changed.slots)


@pytest.mark.parametrize(
    "bad", [{"influence": "dev"}, {"train": 0, "val": 0, "test": 0}, {"influence_horizon": 60}]
)
def test_senseless_settings_are_refused(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        entry.main(dataclasses.replace(Simulate(out=str(tmp_path / "x")), **bad))  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
