"""Simulates planar rigid bodies, contact by contact, so that removing a body is exact.

    bodies ──> free sliding (closed form, all grid points at once) ──> first contact of each pair
                  ^                                                          │ the earliest
                  └───────────────────────── impulse <───────────────────────┘

Between contacts a body slides under ground friction, which has a closed form (motion.py). The time
grid has SUBSTEPS points per frame. At the first grid point at which two bodies overlap and
approach, they exchange one frictionless impulse with restitution (contacts.py).

Why not Chipmunk (pymunk): there the order in which contacts are solved, and even which body of a
pair comes first, depend on a spatial tree that holds ALL bodies. So removing one body may change
the last bits of the others. Here the trajectory of a body depends only on its start and its own
impulses, and contacts at the same grid point are solved in the order of body ids. What a removed
body does not affect stays bit-identical BY CONSTRUCTION. It is also faster than stepping through
the grid. `tests/data_prep/test_simulate.py` compares the impulses with those of pymunk.

Two bodies touch only while both centres are in the view [-1, 1]^2. A body that has left the view
has left the world. Units: the view is 2 wide; time is in video frames, on the grid in sub-steps.
"""

from __future__ import annotations

import numpy as np

from data_prep.simulate.contacts import (
    NEVER,
    NO_CONTACT,
    apply_impulse,
    first_contact,
    nearby_pairs,
)
from data_prep.simulate.motion import (
    GRID_POINTS,
    Array,
    Body,
    Trajectories,
    slide_freely,
    update_view,
)


def simulate(
    bodies: list[Body], removed: int = -1, steps: int = GRID_POINTS, gone: Array | None = None
) -> Trajectories:
    """The trajectories of `bodies` over `steps` grid points, without the body `removed`.

    `gone` (n,) bool: bodies that have left the view before the start.
    """
    n = len(bodies)
    x, y, vx, vy, angle, spin = np.zeros((6, n, steps))
    p = Trajectories(x, y, vx, vy, angle, spin, in_view=np.zeros((n, 2), np.int64), impacts=[])
    absent = [i == removed or (gone is not None and bool(gone[i])) for i in range(n)]
    for i, body in enumerate(bodies):
        slide_freely(p, i, 0, body.x, body.y, body.vx, body.vy, body.angle, body.spin)
        if not absent[i]:
            update_view(p, i)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if not (absent[i] or absent[j])]
    pending = dict.fromkeys(pairs, NO_CONTACT)
    for pair in nearby_pairs(p, pairs, 0):
        pending[pair] = first_contact(p, bodies, *pair, 0)
    while pending:
        (i, j), contact = min(pending.items(), key=lambda item: (item[1][0], item[0]))
        step = contact[0]
        if step >= NEVER:
            break
        apply_impulse(p, bodies, i, j, contact)
        changed = [pair for pair in pairs if i in pair or j in pair]
        pending.update(dict.fromkeys(changed, NO_CONTACT))
        for pair in nearby_pairs(p, changed, step):
            # A later pair may still touch at this grid point; the others continue at the next one.
            pending[pair] = first_contact(p, bodies, *pair, step if pair > (i, j) else step + 1)
    return p
