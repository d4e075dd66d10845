"""Contacts of two bodies: the first one, where it is, and the impulse that they exchange.

    nearby_pairs ──pairs that may touch──> first_contact ──the earliest of all──> apply_impulse

p: all trajectories; i < j: two bodies; k: grid points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_prep.simulate.motion import (
    HALF_SIDE,
    RADIUS,
    SUBSTEPS,
    Array,
    Body,
    Impact,
    Trajectories,
    slide_freely,
    update_view,
)

RESTITUTION = 0.9
# Per unit of mass: three times that of a homogeneous square, so that spins are slow enough to
# follow at 5 frames per step.
CUBE_INERTIA = 3.0 * (2.0 * HALF_SIDE) ** 2 / 6.0
NEVER = 1 << 30  # the grid point of no contact
FIRST_LOOK = 4  # overlapping grid points that are examined before all others
_CORNERS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]) * HALF_SIDE


def nearby_pairs(
    p: Trajectories, pairs: list[tuple[int, int]], start: int
) -> list[tuple[int, int]]:
    """The pairs that may touch from grid point `start` on.

    Only every SUBSTEPS-th point is examined, with a margin for those between: from `start` on
    bodies slide freely and only slow down, so their speeds at `start` bound how much closer they
    come.
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
    return [
        pair for pair, near in zip(pairs, (nearest < reach * reach).tolist(), strict=True) if near
    ]


# Grid point, normal from i to j (2), contact point (2), depth.
Contact = tuple[int, float, float, float, float, float]
NO_CONTACT: Contact = (NEVER, 0.0, 0.0, 0.0, 0.0, 0.0)


def first_contact(p: Trajectories, bodies: list[Body], i: int, j: int, start: int) -> Contact:
    """The first contact from grid point `start` on: both in view, overlapping and approaching."""
    start = max(start, int(p.in_view[i, 0]), int(p.in_view[j, 0]))
    stop = min(int(p.in_view[i, 1]), int(p.in_view[j, 1]))
    if start >= stop:
        return NO_CONTACT
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
        return NO_CONTACT
    k = near + start
    contact_at: Callable[..., tuple[Array, Array, Array, Array, Array]] = _disc_disc
    if cubes == 1:
        k, contact_at = k[_disc_cube_depth(p, i, j, k, bodies[i].cube) > 0.0], _disc_cube
    elif cubes == 2:
        k, contact_at = k[_cube_cube_depths(p, i, j, k).min(0) > 0.0], _cube_cube
    # Mostly the first overlap is the contact. Later ones matter only if the bodies move apart at
    # first.
    for part in (k[:FIRST_LOOK], k[FIRST_LOOK:]):
        if not len(part):
            break
        nx, ny, cx, cy, depth = contact_at(p, i, j, part, bodies[i].cube)
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
    return NO_CONTACT


# `_disc_disc`, `_disc_cube` and `_cube_cube` return, for bodies that overlap at grid points k, the
# normal from i to j (2), the contact point (2) and the depth, each (len(k),).


def _disc_disc(
    p: Trajectories, i: int, j: int, k: Array, _: bool
) -> tuple[Array, Array, Array, Array, Array]:
    dx, dy = p.x[j, k] - p.x[i, k], p.y[j, k] - p.y[i, k]
    distance = np.sqrt(dx * dx + dy * dy)
    nx, ny, depth = dx / distance, dy / distance, 2.0 * RADIUS - distance
    return nx, ny, p.x[i, k] + 0.5 * dx, p.y[i, k] + 0.5 * dy, depth


def _disc_cube(
    p: Trajectories, i: int, j: int, k: Array, i_is_cube: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """The contact point is the cube's nearest point to the disc's centre."""
    cube = i if i_is_cube else j
    c, s, u, v = _in_cube_frame(p, i, j, k, i_is_cube)
    pu, pv = np.clip(u, -HALF_SIDE, HALF_SIDE), np.clip(v, -HALF_SIDE, HALF_SIDE)
    gap = np.sqrt((u - pu) ** 2 + (v - pv) ** 2)
    # The disc's centre is in the cube (only after an entry that overlaps): push it out along the
    # nearer face.
    inside = gap <= 0.0
    by_u = np.abs(u) > np.abs(v)
    safe = np.where(inside, 1.0, gap)
    nu = np.where(inside, np.where(by_u, np.sign(u), 0.0), (u - pu) / safe)
    nv = np.where(inside, np.where(by_u, 0.0, np.sign(v)), (v - pv) / safe)
    depth = np.where(inside, RADIUS + HALF_SIDE - np.maximum(np.abs(u), np.abs(v)), RADIUS - gap)
    sign = 1.0 if i_is_cube else -1.0  # (nu, nv) points from the cube to the disc
    nx, ny = sign * (c * nu - s * nv), sign * (s * nu + c * nv)
    return nx, ny, p.x[cube, k] + c * pu - s * pv, p.y[cube, k] + s * pu + c * pv, depth


def _disc_cube_depth(p: Trajectories, i: int, j: int, k: Array, i_is_cube: bool) -> Array:
    _, _, u, v = _in_cube_frame(p, i, j, k, i_is_cube)
    u, v = np.maximum(np.abs(u) - HALF_SIDE, 0.0), np.maximum(np.abs(v) - HALF_SIDE, 0.0)
    return RADIUS - np.sqrt(u * u + v * v)


def _in_cube_frame(
    p: Trajectories, i: int, j: int, k: Array, i_is_cube: bool
) -> tuple[Array, Array, Array, Array]:
    """Cosine and sine of the cube's angle, and the disc's centre in the cube's frame."""
    disc, cube = (j, i) if i_is_cube else (i, j)
    angle = p.angle[cube, k]
    c, s = np.cos(angle), np.sin(angle)
    dx, dy = p.x[disc, k] - p.x[cube, k], p.y[disc, k] - p.y[cube, k]
    return c, s, c * dx + s * dy, c * dy - s * dx


def _cube_cube(
    p: Trajectories, i: int, j: int, k: Array, _: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """By separating axes: the normal is the axis of least overlap.

    The contact point is the mean of the corners that are inside the other cube.
    """
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


def _cube_cube_depths(p: Trajectories, i: int, j: int, k: Array) -> Array:
    """(4, len(k)): overlap along the two face normals of i and of j; one below 0 = apart."""
    angle = p.angle[[i, j]][:, k]
    c, s = np.cos(angle), np.sin(angle)
    dx, dy = p.x[j, k] - p.x[i, k], p.y[j, k] - p.y[i, k]
    # Half extent along the normals of the other cube.
    across = np.abs(c[0] * c[1] + s[0] * s[1]) + np.abs(c[0] * s[1] - s[0] * c[1])
    along = np.abs(np.stack([c * dx + s * dy, c * dy - s * dx], axis=1)).reshape(4, -1)
    return HALF_SIDE * (1.0 + across) - along


def apply_impulse(p: Trajectories, bodies: list[Body], i: int, j: int, contact: Contact) -> None:
    """Exchange the impulse of a contact and let both bodies slide on; appends the impact."""
    k, nx, ny, cx, cy, depth = contact
    state = []
    for b in (i, j):
        # A disc's normal passes through its centre, so that it gets no spin.
        inverse_inertia = 1.0 / (bodies[b].mass * CUBE_INERTIA) if bodies[b].cube else 0.0
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
        slide_freely(
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
        update_view(p, b)
    p.impacts.append(Impact(k, i, j, cx, cy, depth, impulse))
