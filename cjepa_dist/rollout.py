"""Roll videos out from 128 to 160 frames: `python -m cjepa_dist.rollout world_model=RUN data=DIR out=DIR2`.

slot shards + a trained world model ──> slot shards with the observed frames copied and the predicted ones appended;
annotations, questions and truth are carried along.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cjepa_dist import config as schema
from cjepa_dist.config import MISSING, option
from cjepa_dist.data.dtypes import widen
from cjepa_dist.data.shards import DatasetWriter, Manifest, Sample, read_split
from cjepa_dist.errors import UserError
from cjepa_dist.tasks import WorldModelTask
from cjepa_dist.training.checkpoint import load_task


@dataclass
class Rollout:
    """Roll videos out with a trained world model."""

    world_model: str = option(MISSING, "run folder of a world model")
    data: str = option(MISSING, "folder of slot shards")
    out: str = option(MISSING, "folder to write; must not exist")
    count: int = option(32, "frames to predict", unit="frames", least=1)
    splits: list[str] = option([], "splits to roll out; none named = all")
    videos: int = option(32, "videos at once", unit="videos", least=1)
    shard_mb: int = option(256, "size of a shard", unit="MB", least=1)


def main(config: Rollout) -> int:
    task, trained, step = load_task(config.world_model)
    if not isinstance(task, WorldModelTask):
        raise UserError(f"{config.world_model} is not a world model run")
    manifest = Manifest.load(config.data)
    manifest.check_slots(trained.predictor.slots, trained.predictor.slot_dim, config.data, f"run {config.world_model}")
    needed = trained.predictor.history_frames * trained.frameskip
    if needed > manifest.frames:
        raise UserError(f"{config.data} has {manifest.frames} frames, a rollout needs {needed}")
    if unknown := [name for name in config.splits if name not in manifest.splits]:
        raise UserError(f"{config.data} has no split {', '.join(unknown)}; it has {', '.join(manifest.splits)}")
    source = {
        "kind": "rollout", "world_model": str(Path(config.world_model).resolve()), "step": step, "data": str(Path(config.data).resolve()),
        "count": config.count, "of": manifest.source,
    }  # fmt: skip
    if (Path(config.out) / "manifest.json").exists() and Manifest.load(config.out).source == source:
        print(f"{config.out} already holds this rollout: nothing to do")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = task.predictor.to(device)
    done, began = 0, time.perf_counter()
    with DatasetWriter(
        config.out, encoder=manifest.encoder, source=source, dtype=manifest.dtype, shard_mb=config.shard_mb, empty_slot=manifest.empty_slot
    ) as writer:
        for name in config.splits or manifest.splits:
            split = writer.split(name)
            for group in batched(read_split(config.data, name), config.videos):
                frames = torch.from_numpy(widen(np.stack([np.asarray(sample.slots) for sample in group]))).to(device)
                with torch.no_grad():
                    future = predictor.rollout(frames, config.count, trained.frameskip).cpu().numpy()
                for sample, predicted in zip(group, future):
                    split.add(replace(sample, slots=np.concatenate([widen(np.asarray(sample.slots)), predicted])))
                done += len(group)
    print(f"{done} videos rolled out to {manifest.frames + config.count} frames: {done / (time.perf_counter() - began):.1f} videos/s")
    return 0


def batched(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while group := list(islice(samples, size)):
        yield group


if __name__ == "__main__":
    schema.launch(Rollout, main)
