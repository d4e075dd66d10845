"""CLEVRER's annotation JSON of a simulated video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cjepa_dist.clevrer.scene import VIDEO_FRAMES, SceneObject
from data_prep.simulate.ground_truth import frame_states
from data_prep.simulate.motion import RADIUS
from data_prep.simulate.world import World, collision_episodes, visible_frames


@dataclass
class Annotation:
    """The content of CLEVRER's annotation JSON as arrays.

    Workers send these to the main process, because the JSON is 10,000 small containers. World
    units; velocities per video frame; every centre is one radius above the ground; only the
    collisions in the video.
    """

    scene_index: int
    objects: list[SceneObject]
    location: np.ndarray  # (VIDEO_FRAMES, n, 3), as the next three
    orientation: np.ndarray
    velocity: np.ndarray
    angular_velocity: np.ndarray
    inside: np.ndarray  # (VIDEO_FRAMES, n) bool
    collisions: list[tuple[int, int, int, float, float]]  # frame, a, b, x, y

    def json(self) -> dict[str, Any]:
        """CLEVRER's annotation JSON."""
        vectors = (
            self.location,
            self.orientation,
            self.velocity,
            self.angular_velocity,
            self.inside,
        )
        return {
            "scene_index": self.scene_index,
            "video_filename": f"video_{self.scene_index:05d}.mp4",
            "object_property": [
                {
                    "object_id": o.object_id,
                    "color": o.color,
                    "material": o.material,
                    "shape": o.shape,
                }
                for o in self.objects
            ],
            "motion_trajectory": [
                {
                    "frame_id": t,
                    "objects": [
                        {
                            "object_id": i,
                            "location": location,
                            "orientation": orientation,
                            "velocity": velocity,
                            "angular_velocity": spin,
                            "inside_camera_view": inside,
                        }
                        for i, (location, orientation, velocity, spin, inside) in enumerate(
                            zip(*frame, strict=True)
                        )
                    ],
                }
                for t, frame in enumerate(zip(*(a.tolist() for a in vectors), strict=True))
            ],
            "collision": [
                {
                    "object_ids": [a, b],
                    "frame_id": frame,
                    "location": [round(x, 5), round(y, 5), RADIUS],
                }
                for frame, a, b, x, y in self.collisions
            ],
        }


def annotate(world: World, scene_index: int) -> Annotation:
    """The annotation of a world's video, rounded to 5 decimals."""
    position, velocity, angle, spin = frame_states(world.trajectories, VIDEO_FRAMES)
    location, orientation, speed, angular = np.zeros((4, VIDEO_FRAMES, len(world.objects), 3))
    location[..., :2], location[..., 2], orientation[..., 2] = (
        position.round(5),
        RADIUS,
        angle.round(5),
    )
    speed[..., :2], angular[..., 2] = velocity.round(5), spin.round(5)
    collisions = [c for c in collision_episodes(world.trajectories) if c[0] < VIDEO_FRAMES]
    return Annotation(
        scene_index,
        world.objects,
        location,
        orientation,
        speed,
        angular,
        visible_frames(world.trajectories)[:VIDEO_FRAMES],
        collisions,
    )
