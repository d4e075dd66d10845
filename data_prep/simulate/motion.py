"""Planar rigid bodies and their trajectories; free sliding under friction, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import SIMULATED_FRAMES

Array = np.ndarray

SUBSTEPS = 8  # grid points per frame
GRID_POINTS = (SIMULATED_FRAMES - 1) * SUBSTEPS + 1
VIEW_HALF_WIDTH = 1.0
RADIUS = 0.17  # of spheres and cylinders
HALF_SIDE = RADIUS * float(np.sqrt(np.pi)) / 2  # of cubes: the same area
FRICTION = 1.2e-4 / SUBSTEPS**2  # deceleration by ground friction, units / sub-step^2
SPIN_FRICTION = 6.0e-4 / SUBSTEPS**2  # the same for rotation, rad / sub-step^2
MASS = {"rubber": 1.0, "metal": 2.0}
_TIMES = np.arange(GRID_POINTS, dtype=np.float64)


@dataclass(frozen=True)
class Body:
    """The start of a body. Units: world units, rad, and both per sub-step."""

    x: float
    y: float
    vx: float
    vy: float
    angle: float = 0.0
    spin: float = 0.0
    mass: float = 1.0
    cube: bool = False


@dataclass(frozen=True)
class Impact:
    """One impulse between the bodies a < b at grid point `step` and position (x, y).

    `depth`: the overlap; `impulse`: its size, in mass x units / sub-step.
    """

    step: int
    a: int
    b: int
    x: float
    y: float
    depth: float
    impulse: float


@dataclass
class Trajectories:
    """The states of n bodies at all grid points: arrays (n, steps).

    `in_view` (n, 2): the half-open interval of grid points at which a body is in view. A removed
    body slides on without contacts and is never in view.
    """

    x: Array
    y: Array
    vx: Array
    vy: Array
    angle: Array
    spin: Array
    in_view: Array
    impacts: list[Impact]


def slide_freely(
    p: Trajectories,
    i: int,
    k: int,
    x: float,
    y: float,
    vx: float,
    vy: float,
    angle: float,
    spin: float,
) -> None:
    """Fill the trajectory of body i from grid point k on with free sliding.

    At rest a body keeps its position exactly.
    """
    t = _TIMES[: p.x.shape[1] - k]
    speed = float(np.sqrt(vx * vx + vy * vy))
    if speed > 0.0:
        moving = np.minimum(t, speed / FRICTION)
        slowing = moving * (FRICTION / speed)
        distance = moving * (1.0 - 0.5 * slowing)
        remaining = 1.0 - slowing
        p.x[i, k:] = x + vx * distance
        p.y[i, k:] = y + vy * distance
        p.vx[i, k:] = vx * remaining
        p.vy[i, k:] = vy * remaining
    else:
        p.x[i, k:], p.y[i, k:], p.vx[i, k:], p.vy[i, k:] = x, y, 0.0, 0.0
    if spin != 0.0:
        turning = np.minimum(t, abs(spin) / SPIN_FRICTION)
        slowing = turning * (SPIN_FRICTION / abs(spin))
        p.angle[i, k:] = angle + spin * (turning * (1.0 - 0.5 * slowing))
        p.spin[i, k:] = spin * (1.0 - slowing)
    else:
        p.angle[i, k:], p.spin[i, k:] = angle, 0.0


def update_view(p: Trajectories, i: int) -> None:
    """Set the interval in which body i is in view: its first entry to the first exit after it."""
    inside = (np.abs(p.x[i]) < VIEW_HALF_WIDTH) & (np.abs(p.y[i]) < VIEW_HALF_WIDTH)
    entry = int(inside.argmax())
    if not inside[entry]:
        p.in_view[i] = 0
        return
    outside = ~inside[entry:]
    stay = int(outside.argmax())
    p.in_view[i] = entry, (entry + stay if outside[stay] else len(inside))
