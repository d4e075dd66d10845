"""Imports slots from a pickle, as the extraction scripts of C-JEPA and SlotFormer write them.

    FILE.pkl {split: {"0_pixels.mp4": (T, S, D)}} ──open_pickle──> lazy arrays ──> DIR

Keys are `N_pixels.mp4` (C-JEPA) or `video_NNNNN.mp4` (SlotFormer). N is CLEVRER's scene index,
unique over all splits. One array is read at a time, at its place in the file, so a file of any size
needs only a few hundred MB of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.errors import UserError
from data_prep.importer import ImportOptions, VideoCatalogue, import_videos
from data_prep.pickle import reader
from data_prep.pickle.lazy_arrays import LazyArray, LazyTensor


@dataclass
class ImportPickle(ImportOptions):
    """Turn a pickle of slots into slot shards.

    It holds {split: {"0_pixels.mp4": array (frames, slots, slot_dim)}}.
    A run that was stopped resumes after its last full shard.
    """

    source: str = option(MISSING, "pickle (or torch.save file) of slots", path=True)


def main(config: ImportPickle) -> None:
    """Write the data set. UserError for a pickle that holds anything else, or that runs code."""
    with reader.open_pickle(config.source) as content:
        import_videos(
            config,
            build_catalogue(config.source, content),
            [Path(config.source)],
            "data_prep.import_pickle",
        )


def build_catalogue(path: str, content: Any) -> VideoCatalogue:
    """The videos of {split: {key: array}}."""
    if not isinstance(content, dict) or not all(
        isinstance(videos, dict) for videos in content.values()
    ):
        raise UserError(
            f'{path} must hold {{split: {{"0_pixels.mp4": array}}}};'
            f" its content is {describe_type(content)}"
        )
    found = VideoCatalogue(path)
    for split, videos in content.items():
        for key, slots in videos.items():
            if not isinstance(slots, (LazyArray, LazyTensor)):
                raise UserError(
                    f"{path}: {split}/{key} must be a float array (frames, slots, slot_dim);"
                    f" it is {describe_type(slots)}"
                )
            dtype = slots.dtype.name if isinstance(slots, LazyArray) else ""
            found.add(str(split), key, slots.shape, dtype, partial(reader.read_array, path, slots))
    return found


def describe_type(value: Any) -> str:
    return (
        f"a dict with keys {[*map(str, value)][:3]}"
        if isinstance(value, dict)
        else type(value).__name__
    )


if __name__ == "__main__":
    launch(ImportPickle, main)
