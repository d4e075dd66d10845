"""The table of contents of a folder of slot shards: what must be there, so that nothing missing goes unnoticed.

    DatasetWriter ──> manifest.json (last, atomically) ──> Manifest.load ──> read_split, load_slots, verify_folder

webdataset ends in silence at a shard cut between two samples and passes flipped bytes on; counts, keys and checksums kept apart
from the shards are what catches both. A folder without a manifest is not a data set: the writer did not finish.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.data.format import storage
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path

NAME = "manifest.json"

VERSION = 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard: file name in the split's folder, number of samples, bytes, xxh3 (64 bit, hex) of the file, keys in order.

    `mean`, `squares` (D): mean of each of the slots' numbers over frames and slots, and sum of squares of what is left; `lost`: what
    storing them cost, [sum of squared errors, largest error]. From these the data set's are put together (`moments.py`); none: an older
    data set. `asked`: of each key, the types of its questions, in order, by their first letters ("dddepc"); [] where no key has questions,
    None: an older data set.
    """

    name: str
    samples: int
    bytes: int
    xxh3: str
    keys: list[str]
    mean: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    asked: list[str] | None = None


@dataclass
class Manifest:
    """What a data set holds. `frames`, `slots`, `slot_dim` and `dtype` are the shape (T, S, D) and type of every `slots.npy`.

    `encoder` names what made the slots; `source` says how (seed, settings); `empty_slot` (D) is the vector of a slot without an
    object, None if unknown; `mean` and `std` (D) are over all frames and slots of the train split, None if there is none.
    """

    encoder: str
    source: dict[str, Any]
    frames: int
    slots: int
    slot_dim: int
    dtype: str
    empty_slot: list[float] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    splits: dict[str, list[ShardEntry]] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read `folder/manifest.json`, of a folder or URL (`fetch.py`). UserError if there is none, or of another version, or damaged."""
        path = f"{folder}/{NAME}"
        try:
            content = json.loads(
                storage.read_remote(path) if storage.is_remote(folder) else Path(path).read_bytes()
            )
        except (FileNotFoundError, NotADirectoryError):
            hint = (
                " (an unfinished write is in the folder with .partial behind its name)"
                if partial(folder).is_dir()
                else ""
            )
            raise UserError(
                f"no data set in {folder}: {NAME} is missing{hint}; make one with data_prep"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; make the data set again") from error
        if not isinstance(content, dict) or content.get("version") != VERSION:
            found = content.get("version") if isinstance(content, dict) else None
            raise UserError(
                f"{path} has version {found!r}, this code reads version {VERSION}; make the data set again"
            )
        try:
            splits = {
                name: [ShardEntry(**entry) for entry in entries]
                for name, entries in content.pop("splits").items()
            }
            return cls(**content, splits=splits)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}; make the data set again") from error

    def save(self, folder: str | Path) -> None:
        """Write `folder/manifest.json` atomically: it is there whole or not at all."""
        path, temporary = Path(folder) / NAME, Path(folder) / (NAME + ".tmp")
        with open(temporary, "w") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(folder)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, S, D) of each video."""
        return self.frames, self.slots, self.slot_dim

    def check_slots(self, slots: int, slot_dim: int, folder: str | Path, reader: str) -> None:
        """Raises UserError if `reader` (a run or a config, as the user knows it) takes other slots than this data set, in `folder`, has."""
        if (self.slots, self.slot_dim) != (slots, slot_dim):
            raise UserError(
                f"{folder} has {self.slots} slots x {self.slot_dim}, {reader} takes {slots} x {slot_dim}"
            )

    def shards(self, split: str) -> list[ShardEntry]:
        """The shards of a split, in order. UserError, with the splits there are, if there is no such split."""
        if split not in self.splits:
            raise UserError(
                f"the data set has no split {split!r}; it has {', '.join(self.splits) or 'none'}"
            )
        return self.splits[split]

    def keys(self, split: str) -> list[str]:
        """Keys of all videos of a split, in the order in which they are read."""
        return [key for entry in self.shards(split) for key in entry.keys]

    def count(self, split: str) -> int:
        """Number of videos of a split."""
        return sum(entry.samples for entry in self.shards(split))


def initials(questions: dict[str, Any] | None) -> str:
    """The types of a video's questions, in order, by their first letters; "" for none."""
    return "".join(
        str(question.get("question_type"))[:1]
        for question in (questions or {}).get("questions", ())
    )


def partial(out: str | Path) -> Path:
    """Where the data set `out` stands while it is being written: beside `out`, so that a rename finishes it."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".partial")
