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
from data_prep.catalogue import SPLIT_NAMES, VideoCatalogue
from data_prep.importer import ImportOptions, import_videos
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
    splits = split_entries(content)
    if splits is None:
        raise UserError(
            f'{path} must hold {{split: {{"0_pixels.mp4": array}}}};'
            f" its content is {describe_type(content)}"
        )
    if aside := [str(name) for name in content if name not in splits]:
        print(f"no splits, left aside: {', '.join(aside)[:200]}")
    found = VideoCatalogue(path)
    for split, videos in splits.items():
        for key, slots in videos.items():
            if isinstance(slots, (LazyArray, LazyTensor)):
                dtype = slots.dtype.name if isinstance(slots, LazyArray) else ""
                read = partial(reader.read_array, path, slots)
                found.add(str(split), key, slots.shape, dtype, read)
            else:
                expected = "must be a float array (frames, slots, slot_dim)"
                found.faults.add(f"{split}/{key}", f"{expected}; it is {describe_type(slots)}")
    return found


def split_entries(content: Any) -> dict[Any, dict[Any, Any]] | None:
    """The entries of a pickle that are splits; others are about the data. None if it has no splits.

    An entry that is no dict of arrays is no split, unless it has the name of one, or holds arrays.
    """
    if not isinstance(content, dict):
        return None
    splits = {}
    for name, videos in content.items():
        named = name in ("train", "val", "test", *SPLIT_NAMES)
        if not isinstance(videos, dict):
            items = videos if isinstance(videos, (list, tuple)) else ()
            if named or any(isinstance(item, (LazyArray, LazyTensor)) for item in items):
                return None
        elif named or any(isinstance(v, (LazyArray, LazyTensor)) for v in videos.values()):
            splits[name] = videos
    return splits


def describe_type(value: Any) -> str:
    return (
        f"a dict with keys {[*map(str, value)][:3]}"
        if isinstance(value, dict)
        else type(value).__name__
    )


if __name__ == "__main__":
    launch(ImportPickle, main)
