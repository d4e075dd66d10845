"""A data set of random slots, for speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cjepa_dist.data.format.sample import Sample
from cjepa_dist.data.format.writer import DatasetWriter


def write_random_slots(
    folder: Path, videos: int, slots: int, dim: int, shard_mb: int = 256
) -> None:
    """A data set of noise: the step does not care."""
    generator = np.random.default_rng(0)
    with DatasetWriter(
        folder, encoder="noise", source={"kind": "noise"}, dtype="float16", shard_mb=shard_mb
    ) as writer:
        for split, first, count in (("train", 0, videos), ("val", videos, 2)):
            for scene in range(first, first + count):
                content = generator.standard_normal((128, slots, dim), np.float32).astype(
                    np.float16
                )
                writer.split(split).add(
                    Sample(
                        key=f"video_{scene:05d}", slots=content, annotation={"scene_index": scene}
                    )
                )
