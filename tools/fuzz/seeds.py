"""Valid inputs that are mutated: small, so that a case is fast."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.data.format.manifest import ShardEntry
from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.tar import npy_buffers, npz_bytes
from cjepa_dist.data.format.writer import DatasetWriter
from tools.fuzz.containers import pickled

SHAPE = (2, 2, 4)
JOURNAL_SHARD = 4096  # bytes

CONFIG = b"""\
data: DATA
run: "RUN"
seed: 010
loop:
  steps: 4
  global_batch_size: 8
optimizer: {lr: 1e-3}
mask:
  probs: [0.7, 0.3]
"""

METRICS = b"".join(
    json.dumps({"step": step, "kind": kind, "loss": 0.5, "samples_per_second": 9.0}).encode()
    + b"\n"
    for step, kind in ((1, "train"), (2, "train"), (2, "val"), (3, "train"))
)

MARKS = [
    b'{"step": 4, "steps": 8, "exit_code": 0, "reason": "SIGTERM", "time": "2026-01-01"}',
    b'{"meta.json": "00", "model.safetensors": "0123456789abcdef", ".metadata": "00"}',
    b'{"git": {"commit": "abc", "dirty": false}, "torch": "2.9", "world_size": 2}',
]

VARIABLES = [
    b"RANK=0\nWORLD_SIZE=2\nLOCAL_RANK=0\nMASTER_ADDR=x\nMASTER_PORT=29500",
    b'SLURM_RESTART_COUNT=1\nCJEPA_STAGED={"a": "b"}',
]

DESCRIPTIVE = {
    "question_id": 0,
    "question_type": "descriptive",
    "question_subtype": "count",
    "question": "How many cubes are moving?",
    "program": ["objects", "cube", "filter_shape", "count"],
    "answer": "1",
}
COUNTERFACTUAL = {
    "question_id": 1,
    "question_type": "counterfactual",
    "question": "Without the red cube, what will happen?",
    "choices": [
        {"choice_id": 0, "choice": "The blue sphere exits the scene", "answer": "wrong"},
        {"choice_id": 1, "choice": "The gray cube and the sphere collide", "answer": "correct"},
    ],
}


def questions() -> list[bytes]:
    def entry(scene: int, *found: Any) -> dict[str, Any]:
        name = f"video_{scene:05d}.mp4"
        return {"scene_index": scene, "video_filename": name, "questions": list(found)}

    one, two = entry(2, DESCRIPTIVE, COUNTERFACTUAL), entry(3, COUNTERFACTUAL)
    return [json.dumps(content).encode() for content in ([one, two], [one], one)]


def annotation_content() -> dict[str, Any]:
    kinds = (("red", "metal", "cube"), ("blue", "rubber", "sphere"))
    return {
        "scene_index": 2,
        "video_filename": "video_00002.mp4",
        "object_property": [
            {"object_id": i, "color": color, "material": material, "shape": shape}
            for i, (color, material, shape) in enumerate(kinds)
        ],
        "motion_trajectory": [
            {
                "frame_id": frame,
                "objects": [
                    {"object_id": i, "location": [0.5, i, 0.2], "inside_camera_view": True}
                    for i in (0, 1)
                ],
            }
            for frame in (0, 1)
        ],
        "collision": [{"frame_id": 1, "object_ids": [0, 1]}],
    }


def annotation() -> bytes:
    return json.dumps(annotation_content()).encode()


def video(dtype: str = "f2") -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=dtype).reshape(SHAPE)


def dataset(folder: Path) -> Path:
    """A data set of one shard of two videos, with every member."""
    if folder.is_dir():
        folder.rmdir()
    with DatasetWriter(folder, encoder="none", source={"seed": 0}) as writer:
        for number in range(2):
            sample = Sample(
                f"video_{number:05d}",
                slots=video(),
                annotation=annotation_content(),
                questions=json.loads(questions()[2]),
                truth={"slot_object": np.zeros(2, np.int8)},
                worlds={"removed": np.zeros(1, np.int8), "counterfactual_slots": video()[None]},
                match={"slot_object": np.zeros(2, np.int8)},
            )
            writer.split("train").add(sample)
    return folder


def npys() -> list[bytes]:
    return [b"".join(bytes(b) for b in npy_buffers(video(kind))) for kind in ("f2", "f4")]


def npzs() -> list[bytes]:
    packed = io.BytesIO()
    np.savez_compressed(packed, slots=video("f4"))
    return [npz_bytes({"slots": video(), "more": video("f4")}), fixed_time(packed.getvalue())]


def fixed_time(content: bytes) -> bytes:
    """A zip without the time of its members: the same bytes at each start."""
    found = bytearray(content)
    for mark, first in ((b"PK\3\4", 10), (b"PK\1\2", 12)):
        at = found.find(mark)
        while at >= 0:
            found[at + first : at + first + 4] = b"\0\0\x21\0"
            at = found.find(mark, at + 1)
    return bytes(found)


def safetensors() -> list[bytes]:
    from safetensors.numpy import save

    return [save({"train.0": video(), "train.1": video("f4")})]


def hdf5s() -> list[bytes]:
    import h5py

    found = []
    for packed in (None, "gzip"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            group = file.create_group("train", track_order=False)
            for number in (0, 1):
                name = f"{number}_pixels.mp4"
                group.create_dataset(name, data=video("f4"), compression=packed, track_times=False)
        found.append(buffer.getvalue())
    return found


def pickles() -> list[bytes]:
    import torch

    tree = {"train": {"0_pixels.mp4": video("f4"), "1_pixels.mp4": video("f8")}, "n": [1, 2.5, "x"]}
    found = [pickled(tree, protocol) for protocol in range(6)]
    tensors = {"train": {"0_pixels.mp4": torch.ones(SHAPE), "1": torch.ones(2).bfloat16()}}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=new)
        found.append(buffer.getvalue())
    return [*found, pickled({"a": np.float32(1), 2: (np.array(3), {4, 5}, b"x")}, 2)]


def journal() -> bytes:
    entry = ShardEntry(
        "000000.tar",
        1,
        JOURNAL_SHARD,
        "0" * 16,
        ["video_00000"],
        [0.0] * 4,
        [0.0] * 4,
        [0.0, 0.0],
        [],
    )
    line = {"split": "train", "shape": [*SHAPE], "entry": dataclasses.asdict(entry)}
    return f"{json.dumps({'job': 1})}\n{json.dumps(line)}\n".encode()
