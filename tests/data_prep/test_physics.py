"""The physics: removals are exact, impulses keep momentum and agree with pymunk's."""

from __future__ import annotations

import numpy as np
import pymunk
import pytest

from data_prep.simulate import (
    contacts,
    ground_truth,
    motion,
    physics,
    world,
)
from data_prep.simulate.motion import SUBSTEPS, Body
from tests.data_prep.scenes import affected_objects


def rows(p: motion.Trajectories, i: int) -> list[np.ndarray]:
    return [p.x[i], p.y[i], p.vx[i], p.vy[i], p.angle[i], p.spin[i], p.in_view[i]]


def test_removal_is_exact(worlds: list[world.World]) -> None:
    """Removing an object leaves all that it does not affect bit-identical; others change."""
    kept = changed = 0
    for w in worlds:
        for removed in range(len(w.objects)):
            other, affected = (
                world.counterfactual(w, removed),
                affected_objects(w, removed),
            )
            assert not any(removed in (impact.a, impact.b) for impact in other.trajectories.impacts)
            for i in set(range(len(w.objects))) - {removed}:
                same = all(
                    np.array_equal(a, b)
                    for a, b in zip(
                        rows(w.trajectories, i), rows(other.trajectories, i), strict=True
                    )
                )
                assert same or i in affected
                kept, changed = kept + same, changed + (not same)
    assert kept > 1000 and changed > 1000


def test_simulating_again_is_exact(worlds: list[world.World]) -> None:
    for w in worlds[:20]:
        again = physics.simulate(w.bodies)
        assert again.impacts == w.trajectories.impacts and all(
            np.array_equal(a, b)
            for i in range(len(w.bodies))
            for a, b in zip(rows(w.trajectories, i), rows(again, i), strict=True)
        )


def test_a_late_start_continues_the_world(worlds: list[world.World]) -> None:
    """Continuing from the state at a frame gives the same world; influence relies on it."""
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
    """An impulse keeps the pair's momentum and angular momentum and loses energy.

    Between impulses no body speeds up.
    """
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
    """Velocity and spin of body b just before an impact, from a simulation that stops before it."""
    stopped = physics.simulate(w.bodies, steps=impact.step)
    k = impact.step - 1  # one grid point earlier, then slowed down by one step of friction
    vx, vy, spin = stopped.vx[b, k], stopped.vy[b, k], stopped.spin[b, k]
    speed = float(np.hypot(vx, vy))
    slower = max(0.0, 1.0 - motion.FRICTION / speed) if speed > 0 else 0.0
    less = max(0.0, 1.0 - motion.SPIN_FRICTION / abs(spin)) if spin else 0.0
    return vx * slower, vy * slower, spin * less


@pytest.mark.parametrize("cubes", [(False, False), (True, False), (False, True), (True, True)])
def test_impulses_agree_with_pymunk(cubes: tuple[bool, bool]) -> None:
    """Velocities and spins after one collision are near those of Chipmunk, a stepwise solver."""
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
        for body, x in zip(bodies, (p.x[0, k], p.x[1, k]), strict=True):
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
