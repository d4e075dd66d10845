"""Geometry of what is drawn: outlines of objects, dashes, and the star that marks a contact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cjepa_dist.reporting.scene.scene import Panel

TRAIL_FRAMES = 26  # of the past that an object's trail shows
TRAIL_SHADES = 4
CONTACT_FRAMES = 9  # for which a contact is marked
DASHES = 9  # of the outline of a removed object

# Corners of a shape; all have the area of a circle of radius 1, as in the simulator.
CORNERS = {"cube": 4, "cylinder": 6}
CIRCLE_POINTS = 36


def outline(shape: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """(P, 2) pixels, y down: a square for a cube, a hexagon for a cylinder, else a circle."""
    corners = CORNERS.get(shape, CIRCLE_POINTS)
    turn = np.pi / corners if shape == "cube" else 0.0
    angle = turn + 2 * np.pi * np.arange(corners) / corners
    size = np.sqrt(np.pi / (corners / 2 * np.sin(2 * np.pi / corners)))
    return centre + radius * size * np.stack([np.cos(angle), np.sin(angle)], -1)


def dashes(points: np.ndarray) -> Iterator[np.ndarray]:
    """(2, 2) pieces of a closed outline (P, 2): every second of 2 x DASHES equal ones, in short."""
    closed = np.concatenate([points, points[:1]])
    lengths = np.linalg.norm(np.diff(closed, axis=0), axis=1)
    along = np.concatenate([[0.0], lengths.cumsum()]) / lengths.sum()
    pieces = 4  # of a dash, so that it bends with the outline
    for dash in range(DASHES):
        at = (dash + 0.55 * np.arange(pieces + 1) / pieces) / DASHES
        bent = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], -1)
        yield from (bent[k : k + 2] for k in range(pieces))


def star(centre: np.ndarray, radius: float) -> np.ndarray:
    """(16, 2): a star with eight points."""
    angle = 2 * np.pi * np.arange(16) / 16
    reach = radius * np.where(np.arange(16) % 2, 0.5, 1.0)
    return centre + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def contacts_at(panel: Panel, frame: int) -> list[tuple[int, int, int]]:
    """(age in frames, i, j) of the contacts of the last CONTACT_FRAMES frames."""
    if panel.contacts is None:
        return []
    ages = frame - panel.contacts[:, 0]
    recent = (ages >= 0) & (ages < CONTACT_FRAMES)
    return [(int(a), int(i), int(j)) for a, (_, i, j) in zip(ages[recent], panel.contacts[recent])]
