"""A toy data set with ground truth: discs on lines, two of which swap velocities half-way.

Slots are a random linear embedding of the positions.
"""

from pathlib import Path

import numpy as np

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter

SLOTS, DIM, FRAMES = 4, 8, 160


def question(kind: str, number: int, **rest: object) -> dict:
    return {"question_id": number, "question_type": kind, **rest}


def make_world(out: Path, *, train: int = 12, val: int = 6, dim: int = DIM) -> Path:
    generator = np.random.default_rng(0)
    embed = generator.normal(size=(3, dim))
    empty = np.array([0.0, 0.0, -1.0]) @ embed
    with DatasetWriter(
        out, encoder="toy", source={"kind": "toy"}, dtype="float32", empty_slot=empty.tolist()
    ) as writer:
        for split, first, count in (("train", 0, train), ("val", 100, val)):
            for scene in range(first, first + count):
                writer.split(split).add(video(scene, embed, generator))
    return out


def video(scene: int, embed: np.ndarray, generator: np.random.Generator) -> Sample:
    position = np.zeros((FRAMES, SLOTS, 2), np.float32)
    velocity = generator.normal(size=(SLOTS, 2)) * 0.004
    place = generator.uniform(-1, 1, size=(SLOTS, 2))
    hit = {40, 135}
    for frame in range(FRAMES):
        if frame in hit:
            velocity[[0, 1]] = velocity[[1, 0]]
        place = place + velocity
        position[frame] = place
    present = np.ones((FRAMES, SLOTS), bool)
    present[:, 3] = False
    features = np.concatenate([position, np.where(present, 1.0, -1.0)[..., None]], axis=-1)
    features[~present] = (0.0, 0.0, -1.0)
    slots = (features @ embed).astype(np.float32)
    truth = {
        "slot_object": np.array([0, 1, 2, -1], np.int8),
        "background": np.zeros(SLOTS, bool),
        "present": present,
        "position": position * present[..., None],
        "velocity": np.zeros_like(position),
        "radius": np.float32(0.1),
        "contacts": np.array([[frame, 0, 1] for frame in sorted(hit)], np.int16),
        "influence": np.array([[39, 0, 1], [39, 1, 0]], np.int16),
        "influence_horizon": np.int64(5),
        "future_slots": slots[128:],
        "empty_slot": slots[0, 3],
    }
    answer = ("yes", "no", "no")[scene % 3]
    questions = [
        question(
            "descriptive",
            0,
            question="Are there any moving cubes?",
            program=["exist"],
            answer=answer,
        ),
        question(
            "descriptive",
            1,
            question="How many cubes are moving?",
            question_subtype="count",
            answer="1",
        ),
        question(
            "explanatory",
            11,
            question="Which of the following is responsible for the collision between the cube "
            "and the sphere?",
            choices=[
                {
                    "choice_id": i,
                    "choice": f"the presence of the {color} cube",
                    "answer": "wrong" if i else "correct",
                }
                for i, color in enumerate(("red", "blue", "green"))
            ],
        ),
        question(
            "predictive",
            12,
            question="What will happen next?",
            choices=[
                {
                    "choice_id": i,
                    "choice": "the cube and the sphere collide",
                    "answer": "correct" if i == scene % 2 else "wrong",
                }
                for i in range(2)
            ],
        ),
    ]
    name = f"video_{scene:05d}"
    return Sample(
        key=name,
        slots=slots[:128],
        annotation={
            "scene_index": scene,
            "video_filename": f"{name}.mp4",
            "object_property": [],
            "motion_trajectory": [],
            "collision": [],
        },
        questions={"scene_index": scene, "video_filename": f"{name}.mp4", "questions": questions},
        truth=truth,
    )
