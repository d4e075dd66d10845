"""A data set of random slots: speed does not depend on their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter

FRAMES, SLOTS, SLOT_DIM = 128, 7, 128  # of a CLEVRER video


def write_random_slots(
    folder: Path, videos: int, slots: int = SLOTS, dim: int = SLOT_DIM, shard_mb: int = 256
) -> None:
    """`videos` videos in split train and two in val, float16."""
    generator = np.random.default_rng(0)
    with DatasetWriter(
        folder, encoder="noise", source={"kind": "noise"}, dtype="float16", shard_mb=shard_mb
    ) as writer:
        for scene in range(videos + 2):
            content = generator.standard_normal((FRAMES, slots, dim), np.float32)
            sample = Sample(
                key=f"video_{scene:05d}",
                slots=content.astype(np.float16),
                annotation={"scene_index": scene},
            )
            writer.split("train" if scene < videos else "val").add(sample)
