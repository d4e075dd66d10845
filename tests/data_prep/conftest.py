"""Fixtures of the tests of data preparation."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.simulate import generation, world

VIDEOS = 200


@pytest.fixture(scope="session")
def worlds() -> list[world.World]:
    """Random worlds; read-only."""
    return [generation.generate(np.random.default_rng([7, i])) for i in range(VIDEOS)]
