"""Imports slots from a folder of arrays: .npy, .npz, .safetensors, HDF5.

    FOLDER/<split>/0_pixels.npy ...        one file per video: its only array, or "slots"
    FOLDER/<split>.npz {"0_pixels.mp4": }  one file per split: its arrays by name
    FOLDER/<split>.npy (V, T, S, D)        one array per split; <split>.txt has a key on each line
    FOLDER/any.h5 {<split>/0_pixels.mp4: } the groups of an HDF5 file are splits

Where folders, file and groups have several names, such as train/slots/0_pixels.npy, the split is
the one of them that names a split: train, val, validation, valid or test.

One video is read at a time. Questions, annotations, dtypes, parts and continuing as in
import_pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import option
from cjepa_dist.errors import UserError
from data_prep.array_files import FORMATS, StoredArray, open_arrays
from data_prep.catalogue import KEY_PATTERN, SPLIT_NAMES, VideoCatalogue
from data_prep.importer import ImportOptions, import_videos

KNOWN_SPLITS = ("train", "val", "test", *SPLIT_NAMES)


@dataclass
class ImportArrays(ImportOptions):
    """Turn a folder of arrays of slots (.npy, .npz, .safetensors, .h5) into slot shards.

    One file per video or one per split. Keys are like 0_pixels or video_00000. A run that was
    stopped resumes after its last full shard.
    """

    source: str = option(MISSING, "folder: SPLIT/KEY.npy ..., or SPLIT.npz ...", path=True)


def main(config: ImportArrays) -> None:
    """Write the data set. UserError for a folder without arrays, or arrays that are no videos."""
    folder = Path(config.source)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS and not path.name.startswith("._")  # of macOS
    )
    if not files:
        raise UserError(f"source={folder}: there is no {', '.join(FORMATS)} in it")
    keys = [file for path in files if (file := path.with_suffix(".txt")).is_file()]
    catalogue = build_catalogue(folder, files)
    import_videos(config, catalogue, [*files, *keys], "data_prep.import_arrays")


def build_catalogue(folder: Path, files: list[Path]) -> VideoCatalogue:
    """The videos of all files."""
    found = VideoCatalogue(str(folder))
    for path in files:
        arrays, folders = open_arrays(path), path.relative_to(folder).parts[:-1]
        if KEY_PATTERN.fullmatch(path.stem):
            if path.parent == folder:
                raise UserError(
                    f"{path} is of no split: one file per video belongs into {folder}/train/,"
                    f" {folder}/val/, ..."
                )
            if len(arrays) > 1 and "slots" not in arrays:
                raise UserError(
                    f"{path} holds {len(arrays)} arrays, none of them named slots:"
                    f" {', '.join(sorted(arrays)[:3])}"
                )
            add_video(
                found,
                find_split(path, folders),
                path.stem,
                arrays["slots"] if "slots" in arrays else next(iter(arrays.values())),
            )
        elif len(arrays) == 1 and len(next(iter(arrays.values())).shape) == 4:
            rows = next(iter(arrays.values()))
            keys = read_keys(path.with_suffix(".txt"), rows.shape[0])
            split = find_split(path, (*folders, path.stem))
            for row, key in enumerate(keys):
                found.add(split, key, rows.shape[1:], rows.dtype, partial(rows.read, row))
        else:
            for name, array in arrays.items():
                *groups, key = name.split("/")
                split = find_split(path, (*folders, path.stem), groups)
                add_video(found, split, key, array)
    return found


def find_split(path: Path, names: Sequence[str], groups: Sequence[str] = ()) -> str:
    """The split of arrays in folders and a file of these names, and in groups of the file.

    Raises UserError, naming `path`, where it cannot be told.
    """
    if named := {name for name in (*names, *groups) if name in KNOWN_SPLITS}:
        if len(named) == 1:
            return named.pop()
    elif len(groups) == 1 and len(names) == 1:
        return groups[0]
    elif len(names) + len(groups) == 1:
        return (*names, *groups)[0]
    where = "/".join((*names, *groups))
    raise UserError(
        f"{path}: which split are the videos of {where}? One of its names must be that of a split"
        f" ({', '.join(KNOWN_SPLITS)}), or all but one must go"
    )


def add_video(found: VideoCatalogue, split: str, key: str, array: StoredArray) -> None:
    found.add(split, key, array.shape, array.dtype, partial(array.read, None))


def read_keys(path: Path, count: int) -> list[str]:
    """The keys of the rows of one array of all videos."""
    try:
        keys = path.read_text(encoding="utf-8-sig").split()
    except OSError as error:
        raise UserError(
            f"{path} is needed, with the keys of {count} videos, one per line ({error.strerror})"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it as UTF-8") from error
    if len(keys) != count:
        raise UserError(f"{path} names {len(keys)} videos, the array beside it holds {count}")
    return keys


if __name__ == "__main__":
    launch(ImportArrays, main)
