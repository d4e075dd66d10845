"""Ground truth and annotations of a simulated video."""

from __future__ import annotations

import json

import numpy as np

from cjepa_dist.clevrer.scene import (
    VIDEO_FRAMES,
)
from data_prep.simulate import (
    annotation,
    ground_truth,
    motion,
    physics,
    world,
)
from data_prep.simulate.motion import SUBSTEPS
from tests.data_prep.scenes import random_layout


def test_influence_needs_a_contact_and_contacts_mostly_give_it(worlds: list[world.World]) -> None:
    found = contacts = 0
    for w in worlds[:40]:
        slot_object, _, _ = random_layout(w, np.random.default_rng(0))
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
    """Whether removing j makes i touch something."""
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
