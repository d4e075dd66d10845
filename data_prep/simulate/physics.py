"""Planar rigid bodies, event by event, with exact removal of a body.

    bodies ──> free sliding (closed form, the whole grid at once) ──> first touch of each pair ──> impulse ──> free sliding again ...

Between touches a body slides under ground friction, which has a closed form; so a world is a list of free paths cut by
impulses. The time grid has SUBSTEPS points a frame. At the first grid point at which two bodies overlap and approach, they
exchange one frictionless impulse with restitution.

Why not Chipmunk (pymunk): there, the order in which contacts are solved, and even which body of a pair comes first, depend on a
spatial tree that holds ALL bodies, so that taking one away may change the last bits of the others. Here a body's path is a
function of its start and of its own impulses alone, and touches at the same grid point are solved in the order of body ids:
what is not downstream of a removed body is bit-identical BY CONSTRUCTION. It is also faster than stepping through the
grid. `tests/data_prep/test_simulate.py` compares impulses with pymunk's.

Bodies touch only while the centres of both are in the view [-1, 1]^2; a body that has left the view has left the world.
Units: the view is 2 wide; time in video frames, on the grid in sub-steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cjepa_dist.clevrer.scene import FRAMES

Array = np.ndarray

SUBSTEPS = 8  # grid points a frame
GRID = (FRAMES - 1) * SUBSTEPS + 1
VIEW = 1.0  # half width of the view
RADIUS = 0.17  # of spheres and cylinders
HALF_SIDE = RADIUS * float(np.sqrt(np.pi)) / 2  # of cubes: the same area
RESTITUTION = 0.9
SLIDE = 1.2e-4 / SUBSTEPS**2  # deceleration by ground friction, units / sub-step^2
SPIN_SLIDE = 6.0e-4 / SUBSTEPS**2  # the same for rotation, rad / sub-step^2
MASS = {"rubber": 1.0, "metal": 2.0}
CUBE_INERTIA = (
    3.0 * (2.0 * HALF_SIDE) ** 2 / 6.0
)  # per unit of mass: three times that of an even square, so that spins stay readable at 5 frames a step
NEVER = 1 << 30
FEW = 4  # overlapping grid points looked at first for a touch
_TIMES = np.arange(GRID, dtype=np.float64)
_CORNERS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) * HALF_SIDE


@dataclass(frozen=True)
class Body:
    """Start of a body: position (units), velocity (units / sub-step), angle (rad), spin (rad / sub-step)."""

    x: float
    y: float
    vx: float
    vy: float
    angle: float = 0.0
    spin: float = 0.0
    mass: float = 1.0
    cube: bool = False


@dataclass(frozen=True)
class Hit:
    """One impulse between the bodies a < b at grid point `step`: where, how deep the overlap, its size (mass x units / sub-step)."""

    step: int
    a: int
    b: int
    x: float
    y: float
    depth: float
    impulse: float


@dataclass
class Paths:
    """Grid of states, each (n, steps); `alive` (n, 2) is the half-open interval of grid points in which a body is in view.

    A removed body slides on, untouched, and is never in view.
    """

    x: Array
    y: Array
    vx: Array
    vy: Array
    angle: Array
    spin: Array
    alive: Array
    hits: list[Hit]


def simulate(
    bodies: list[Body], removed: int = -1, steps: int = GRID, gone: Array | None = None
) -> Paths:
    """The world of `bodies` for `steps` grid points without the body `removed`. `gone` (n,) bool: bodies that have left before."""
    n = len(bodies)
    x, y, vx, vy, angle, spin = np.zeros((6, n, steps))
    p = Paths(x, y, vx, vy, angle, spin, alive=np.zeros((n, 2), np.int64), hits=[])
    absent = [i == removed or (gone is not None and bool(gone[i])) for i in range(n)]
    for i, body in enumerate(bodies):
        _slide(p, i, 0, body.x, body.y, body.vx, body.vy, body.angle, body.spin)
        if not absent[i]:
            _view(p, i)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if not (absent[i] or absent[j])]
    pending = dict.fromkeys(pairs, _NO_TOUCH)
    for pair in _approaching(p, pairs, 0):
        pending[pair] = _first_touch(p, bodies, *pair, 0)
    while pending:
        (i, j), touch = min(pending.items(), key=lambda item: (item[1][0], item[0]))
        step = touch[0]
        if step >= NEVER:
            break
        _bounce(p, bodies, i, j, touch)
        changed = [pair for pair in pairs if i in pair or j in pair]
        pending.update(dict.fromkeys(changed, _NO_TOUCH))
        for pair in _approaching(p, changed, step):
            # A pair that comes later in the order may still touch at this grid point; the others go on from the next.
            pending[pair] = _first_touch(p, bodies, *pair, step if pair > (i, j) else step + 1)
    return p


def _approaching(p: Paths, pairs: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    """The pairs that may touch from grid point `start` on: a look at every SUBSTEPS-th point, with a margin that covers the others.

    From `start` on the paths are free slides, which only slow down: speeds at `start` bound how much nearer two bodies come in between.
    """
    if not pairs:
        return []
    index = np.array(pairs)
    i, j = index[:, 0], index[:, 1]
    x, y = p.x[:, start::SUBSTEPS], p.y[:, start::SUBSTEPS]
    speed = np.sqrt(p.vx[:, start] ** 2 + p.vy[:, start] ** 2) * SUBSTEPS
    dx, dy = x[j] - x[i], y[j] - y[i]
    nearest = (dx * dx + dy * dy).min(1)
    reach = 2.0 * 2**0.5 * HALF_SIDE + speed[i] + speed[j]
    return [pair for pair, near in zip(pairs, (nearest < reach * reach).tolist()) if near]


def _slide(
    p: Paths, i: int, k: int, x: float, y: float, vx: float, vy: float, angle: float, spin: float
) -> None:
    """Fill body i's path from grid point k on with free sliding; at rest it stays where it is, to the bit."""
    t = _TIMES[: p.x.shape[1] - k]
    speed = float(np.sqrt(vx * vx + vy * vy))
    if speed > 0.0:
        moving = np.minimum(t, speed / SLIDE)
        slowing = moving * (SLIDE / speed)
        way = moving * (1.0 - 0.5 * slowing)
        left = 1.0 - slowing
        p.x[i, k:] = x + vx * way
        p.y[i, k:] = y + vy * way
        p.vx[i, k:] = vx * left
        p.vy[i, k:] = vy * left
    else:
        p.x[i, k:], p.y[i, k:], p.vx[i, k:], p.vy[i, k:] = x, y, 0.0, 0.0
    if spin != 0.0:
        turning = np.minimum(t, abs(spin) / SPIN_SLIDE)
        slowing = turning * (SPIN_SLIDE / abs(spin))
        p.angle[i, k:] = angle + spin * (turning * (1.0 - 0.5 * slowing))
        p.spin[i, k:] = spin * (1.0 - slowing)
    else:
        p.angle[i, k:], p.spin[i, k:] = angle, 0.0


def _view(p: Paths, i: int) -> None:
    """Set the one interval in which body i is in view: from its first entry to the first exit after it."""
    inside = (np.abs(p.x[i]) < VIEW) & (np.abs(p.y[i]) < VIEW)
    first = int(inside.argmax())
    if not inside[first]:
        p.alive[i] = 0
        return
    out = ~inside[first:]
    last = int(out.argmax())
    p.alive[i] = first, (first + last if out[last] else len(inside))


Touch = tuple[
    int, float, float, float, float, float
]  # grid point, normal from i to j (2), contact point (2), depth
_NO_TOUCH: Touch = (NEVER, 0.0, 0.0, 0.0, 0.0, 0.0)


def _first_touch(p: Paths, bodies: list[Body], i: int, j: int, start: int) -> Touch:
    """First grid point >= start at which i and j, both in view, overlap and approach."""
    start = max(start, int(p.alive[i, 0]), int(p.alive[j, 0]))
    stop = min(int(p.alive[i, 1]), int(p.alive[j, 1]))
    if start >= stop:
        return _NO_TOUCH
    dx, dy = p.x[j, start:stop] - p.x[i, start:stop], p.y[j, start:stop] - p.y[i, start:stop]
    cubes = bodies[i].cube + bodies[j].cube
    reach = (
        2.0 * RADIUS
        if cubes == 0
        else RADIUS + HALF_SIDE * 2**0.5
        if cubes == 1
        else 2.0 * HALF_SIDE * 2**0.5
    )
    near = (dx * dx + dy * dy < reach * reach).nonzero()[0]
    if not len(near):
        return _NO_TOUCH
    k = near + start
    touch_at: Callable[..., tuple[Array, Array, Array, Array, Array]] = _disc_disc
    if cubes == 1:
        k, touch_at = k[_disc_cube_depth(p, i, j, k, bodies[i].cube) > 0.0], _disc_cube
    elif cubes == 2:
        k, touch_at = k[_cube_cube_depths(p, i, j, k).min(0) > 0.0], _cube_cube
    for part in (
        k[:FEW],
        k[FEW:],
    ):  # mostly the first overlap is the touch; later ones count only if the bodies were parting then
        if not len(part):
            break
        nx, ny, cx, cy, depth = touch_at(p, i, j, part, bodies[i].cube)
        xi, yi, xj, yj = p.x[i, part], p.y[i, part], p.x[j, part], p.y[j, part]
        ux = (
            p.vx[j, part]
            - p.spin[j, part] * (cy - yj)
            - p.vx[i, part]
            + p.spin[i, part] * (cy - yi)
        )
        uy = (
            p.vy[j, part]
            + p.spin[j, part] * (cx - xj)
            - p.vy[i, part]
            - p.spin[i, part] * (cx - xi)
        )
        approach = ux * nx + uy * ny < -1e-9
        q = int(approach.argmax())
        if approach[q]:
            return (
                int(part[q]),
                float(nx[q]),
                float(ny[q]),
                float(cx[q]),
                float(cy[q]),
                float(depth[q]),
            )
    return _NO_TOUCH


# `_disc_disc`, `_disc_cube`, `_cube_cube`: of overlapping bodies at grid points k, the normal from i to j (2), the contact point (2)
# and the depth, each (len(k),).


def _disc_disc(
    p: Paths, i: int, j: int, k: Array, _: bool
) -> tuple[Array, Array, Array, Array, Array]:
    dx, dy = p.x[j, k] - p.x[i, k], p.y[j, k] - p.y[i, k]
    distance = np.sqrt(dx * dx + dy * dy)
    nx, ny, depth = dx / distance, dy / distance, 2.0 * RADIUS - distance
    return nx, ny, p.x[i, k] + 0.5 * dx, p.y[i, k] + 0.5 * dy, depth


def _disc_cube(
    p: Paths, i: int, j: int, k: Array, i_is_cube: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """The contact point is the cube's nearest point to the disc's centre."""
    cube = i if i_is_cube else j
    c, s, u, v = _in_cube(p, i, j, k, i_is_cube)
    pu, pv = np.clip(u, -HALF_SIDE, HALF_SIDE), np.clip(v, -HALF_SIDE, HALF_SIDE)
    gap = np.sqrt((u - pu) ** 2 + (v - pv) ** 2)
    inside = (
        gap <= 0.0
    )  # the disc's centre is in the cube: only after an overlapping entry; push out along the nearer face
    by_u = np.abs(u) > np.abs(v)
    safe = np.where(inside, 1.0, gap)
    nu = np.where(inside, np.where(by_u, np.sign(u), 0.0), (u - pu) / safe)
    nv = np.where(inside, np.where(by_u, 0.0, np.sign(v)), (v - pv) / safe)
    depth = np.where(inside, RADIUS + HALF_SIDE - np.maximum(np.abs(u), np.abs(v)), RADIUS - gap)
    sign = 1.0 if i_is_cube else -1.0  # (nu, nv) points from the cube to the disc
    nx, ny = sign * (c * nu - s * nv), sign * (s * nu + c * nv)
    return nx, ny, p.x[cube, k] + c * pu - s * pv, p.y[cube, k] + s * pu + c * pv, depth


def _disc_cube_depth(p: Paths, i: int, j: int, k: Array, i_is_cube: bool) -> Array:
    _, _, u, v = _in_cube(p, i, j, k, i_is_cube)
    u, v = np.maximum(np.abs(u) - HALF_SIDE, 0.0), np.maximum(np.abs(v) - HALF_SIDE, 0.0)
    return RADIUS - np.sqrt(u * u + v * v)


def _in_cube(
    p: Paths, i: int, j: int, k: Array, i_is_cube: bool
) -> tuple[Array, Array, Array, Array]:
    """Cosine and sine of the cube's angle, and the disc's centre in the cube's frame."""
    disc, cube = (j, i) if i_is_cube else (i, j)
    angle = p.angle[cube, k]
    c, s = np.cos(angle), np.sin(angle)
    dx, dy = p.x[disc, k] - p.x[cube, k], p.y[disc, k] - p.y[cube, k]
    return c, s, c * dx + s * dy, c * dy - s * dx


def _cube_cube(
    p: Paths, i: int, j: int, k: Array, _: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """Separating axes: the normal is the axis of least overlap, the contact point the mean of the corners inside the other cube."""
    depths = _cube_cube_depths(p, i, j, k)
    axis, every = depths.argmin(0), np.arange(len(k))
    angle, x, y = (
        p.angle[[i, j]][:, k],
        p.x[[i, j]][:, k],
        p.y[[i, j]][:, k],
    )  # (2, K): of i and of j
    c, s = np.cos(angle), np.sin(angle)
    nx, ny = (
        np.stack([c[0], -s[0], c[1], -s[1]])[axis, every],
        np.stack([s[0], c[0], s[1], c[1]])[axis, every],
    )
    sign = np.where((x[1] - x[0]) * nx + (y[1] - y[0]) * ny < 0.0, -1.0, 1.0)
    u, v = _CORNERS[:, :1, None], _CORNERS[:, 1:, None]
    wx, wy = x + c * u - s * v, y + s * u + c * v  # (4, 2, K) corners
    ox, oy, co, so = wx - x[::-1], wy - y[::-1], c[::-1], s[::-1]
    inside = (np.abs(co * ox + so * oy) <= HALF_SIDE) & (np.abs(co * oy - so * ox) <= HALF_SIDE)
    count = inside.sum((0, 1))
    some, share = count > 0, np.maximum(count, 1)
    cx = np.where(some, (wx * inside).sum((0, 1)) / share, x.mean(0))
    cy = np.where(some, (wy * inside).sum((0, 1)) / share, y.mean(0))
    return nx * sign, ny * sign, cx, cy, depths[axis, every]


def _cube_cube_depths(p: Paths, i: int, j: int, k: Array) -> Array:
    """(4, len(k)): overlap along the two face normals of i and of j; negative along any of them = apart."""
    angle = p.angle[[i, j]][:, k]
    c, s = np.cos(angle), np.sin(angle)
    dx, dy = p.x[j, k] - p.x[i, k], p.y[j, k] - p.y[i, k]
    across = np.abs(c[0] * c[1] + s[0] * s[1]) + np.abs(
        c[0] * s[1] - s[0] * c[1]
    )  # half extent on the other's normals
    along = np.abs(np.stack([c * dx + s * dy, c * dy - s * dx], axis=1)).reshape(4, -1)
    return HALF_SIDE * (1.0 + across) - along


def _bounce(p: Paths, bodies: list[Body], i: int, j: int, touch: Touch) -> None:
    """Exchange the impulse of a touch and let both bodies slide on; appends the hit."""
    k, nx, ny, cx, cy, depth = touch
    state = []
    for b in (i, j):
        inverse_inertia = (
            1.0 / (bodies[b].mass * CUBE_INERTIA) if bodies[b].cube else 0.0
        )  # a disc's normal passes through its centre
        x, y = float(p.x[b, k]), float(p.y[b, k])
        arm = (cx - x) * ny - (cy - y) * nx
        state.append(
            (
                x,
                y,
                float(p.vx[b, k]),
                float(p.vy[b, k]),
                float(p.angle[b, k]),
                float(p.spin[b, k]),
                1.0 / bodies[b].mass,
                inverse_inertia,
                arm,
            )
        )
    (_, _, vxi, vyi, _, wi, mi, ii, ri), (_, _, vxj, vyj, _, wj, mj, ij, rj) = state
    approach = (vxj - vxi) * nx + (vyj - vyi) * ny + wj * rj - wi * ri
    impulse = -(1.0 + RESTITUTION) * approach / (mi + mj + ii * ri * ri + ij * rj * rj)
    for b, sign, (x, y, vx, vy, angle, spin, m, inertia, arm) in (
        (i, -1.0, state[0]),
        (j, 1.0, state[1]),
    ):
        push = sign * impulse
        _slide(
            p,
            b,
            k,
            x,
            y,
            vx + push * m * nx,
            vy + push * m * ny,
            angle,
            spin + push * inertia * arm,
        )
        _view(p, b)
    p.hits.append(Hit(k, i, j, cx, cy, depth, impulse))
