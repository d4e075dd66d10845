"""Videos seen from above: what the model sees and predicts, beside the truth.

    run, data ──SceneReader──┬── observed slots, then the rollout ──┐
                             ├── worlds without an object ──────────┼──probe──> positions ──> Scene
                             ├── interventional graph of each frame ┘             │
                             └── the simulator's truth of each, if there is one ──┘
    Scene ──> write_gif, write_png, scene_html

Nothing is drawn at random: the same run and video give the same picture.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from cjepa_dist.checkpoint.loading import newest_checkpoint
from cjepa_dist.checkpoint.run import load_task, read_config
from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.position_probe import fit_position_probe
from cjepa_dist.reporting.scene.html import scene_html
from cjepa_dist.reporting.scene.image import write_gif, write_png
from cjepa_dist.reporting.scene.reader import SceneReader
from cjepa_dist.reporting.scene.scene import Scene
from cjepa_dist.reporting.scene.video import eventful_videos, open_video
from cjepa_dist.tasks.world_model import WorldModelTask

__all__ = ["Scene", "interesting_videos", "load_scene", "scene_html", "write_gif", "write_png"]

PROBE_VIDEOS = 200  # of the train split, to fit the probe on


def load_scene(
    run: Path, split: str, video: int, data: str = "", rollout: str = "", removed: str = ""
) -> Scene:
    """Video number `video` (from 0) of a split, as a world model run sees and continues it.

    `data`: a folder of slot shards; "" = that of the run. `rollout`: a folder that `cjepa rollout`
    wrote from it, whose predictions are drawn; "" = predict now, on the CPU, within seconds.
    `removed`: the object of the world without an object, an id or words such as "red cube"; "" =
    the one whose removal changes most.

    Raises UserError where the run is no trained world model, its slots are not those of the data,
    the video does not exist, or no positions can be read from slots.
    """
    reader, config = open_run(Path(run), data)
    return reader.draw(open_video(data or config.data, split, video, rollout), removed)


def open_run(run: Path, data: str) -> tuple[SceneReader, TrainWorldModel]:
    """The reader of a run, and its config. Read and fitted once for all videos of a run."""
    config = world_model_config(run)
    newest = newest_checkpoint(run / "checkpoints")
    if newest is None:
        raise UserError(f"run {run} has no checkpoint: train it first")
    manifest = Manifest.load(data or config.data)
    source = manifest.encoder, repr(manifest.source)
    return make_reader(run, data or config.data, newest, source), config


def world_model_config(run: Path) -> TrainWorldModel:
    config = read_config(run)
    if not isinstance(config, TrainWorldModel):
        raise UserError(f"run {run} holds no world model: scenes are drawn of world models")
    return config


@lru_cache(maxsize=2)
def make_reader(run: Path, data: str, checkpoint: Path, source: object) -> SceneReader:
    """`checkpoint` and `source` are in the key of the cache only: what the reader depends on."""
    task, config, _ = load_task(run)
    assert isinstance(task, WorldModelTask)
    size, manifest = config.predictor, Manifest.load(data)
    manifest.check_slots(size.slots, size.slot_dim, data, f"run {run}")
    splits = manifest.splits
    split = config.train_split if config.train_split in splits else next(iter(splits))
    probe = fit_position_probe(data, split, videos=PROBE_VIDEOS)
    if probe is None:
        raise UserError(
            f"{data} does not say where its objects are (truth.npz or match.npz), so that slots "
            "cannot be drawn; for CLEVRER's annotations run cjepa match"
        )
    return SceneReader(task, probe)


def interesting_videos(run: Path, split: str, count: int) -> list[int]:
    """Numbers of at most `count` videos of the run's data in which much happens, most first.

    First those with a contact after the video, which the model has to predict, AND an object whose
    removal changes the path of another; then those with either. Chosen by the simulator's truth
    alone, so that they are no selection of what the model does well. The first videos of the split
    where the data has no truth. Raises UserError if the run is no world model.
    """
    config = world_model_config(Path(run))
    first_frame = config.predictor.history_frames * config.frameskip
    return eventful_videos(config.data, split, count, first_frame)
