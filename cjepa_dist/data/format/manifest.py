"""The manifest: the table of contents of a data set, so that nothing missing goes unnoticed.

    DatasetWriter ──> manifest.json (last, atomically) ──> Manifest.load
                                                           └──> read_split, load_slots, verify

webdataset silently ends at a shard that is cut between two samples, and passes flipped bytes on.
Counts, keys and checksums outside the shards catch both. A folder without a manifest is not a data
set: the writer did not finish.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.data.format import storage
from cjepa_dist.data.format.manifest_checks import MOST_MANIFEST_BYTES, check_manifest
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import fsync_path

MANIFEST_NAME = "manifest.json"
SKIPPED_NAME = "skipped.jsonl"  # what an import left out, a line each

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    `name`: file name in the split's folder; `xxh3`: checksum of the file (64 bit, hex); `keys` in
    order.

    Statistics of its slots, from which those of the data set are merged (`statistics.py`): `mean`
    and `squared_deviations` (D), over frames and slots; `conversion_error`: of storing them, [sum
    of squared errors, largest error].

    `question_types`: for each key the types of its questions, in order, by their first letters
    ("dddepc"); [] if no key has questions.
    """

    name: str
    samples: int
    bytes: int
    xxh3: str
    keys: list[str]
    mean: list[float]
    squared_deviations: list[float]
    conversion_error: list[float]
    question_types: list[str]


@dataclass
class Manifest:
    """What a data set holds.

    `frames`, `slots`, `slot_dim` and `dtype` are the shape (T, S, D) and type of every `slots.npy`.
    `encoder` names what made the slots; `source` says how (seed, settings). `empty_slot` (D) is the
    vector of a slot without an object, None if unknown. `mean` and `std` (D) are over all frames
    and slots of the train split, None if there is none.
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
    version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read `manifest.json` of a folder or URL (`storage.py`).

        UserError if there is none, or if it is damaged or of another version.
        """
        path = storage.join(folder, MANIFEST_NAME)
        try:
            content = json.loads(read_limited(path), parse_constant=refuse_constant)
        except (FileNotFoundError, NotADirectoryError):
            hint = (
                " (an unfinished write is in the folder with .partial behind its name)"
                if partial_folder(folder).is_dir()
                else ""
            )
            raise UserError(
                f"no data set in {folder}: {MANIFEST_NAME} is missing{hint}; "
                "make one with data_prep"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}; make the data set again") from error
        if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
            found = content.get("version") if isinstance(content, dict) else None
            raise UserError(
                f"{path} has version {found!r}, this code reads version {FORMAT_VERSION}; "
                "make the data set again"
            )
        try:
            check_manifest(content)
            splits = {
                name: [ShardEntry(**entry) for entry in entries]
                for name, entries in content.pop("splits").items()
            }
            manifest = cls(**content, splits=splits)
        except KeyError as error:
            raise UserError(
                f"{path} is damaged: it lacks {error}; make the data set again"
            ) from error
        except (ValueError, TypeError, UserError) as error:
            raise UserError(f"{path} is damaged: {error}; make the data set again") from error
        storage.distrust(manifest.source.get("data"), path)
        return manifest

    def save(self, folder: str | Path) -> None:
        """Write `folder/manifest.json` completely or not at all, and flush it to the disk."""
        path, temporary = Path(folder) / MANIFEST_NAME, Path(folder) / (MANIFEST_NAME + ".tmp")
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
        """Raises UserError if `reader` takes other slots than this data set, in `folder`, has.

        `reader`: a run or a config, as the user knows it.
        """
        if (self.slots, self.slot_dim) != (slots, slot_dim):
            raise UserError(
                f"{folder} has {self.slots} slots x {self.slot_dim}, "
                f"{reader} takes {slots} x {slot_dim}"
            )

    def shards(self, split: str) -> list[ShardEntry]:
        """The shards of a split, in order. UserError, naming all splits, if there is none such."""
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


def read_limited(path: str) -> bytes:
    """A manifest's bytes. Raises ValueError for more than a manifest has, or for no plain file."""
    if storage.is_remote(path):
        return storage.read_remote(path, most=MOST_MANIFEST_BYTES)
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is no plain file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size  # read() makes room for all that it may read
        content = file.read(min(size, MOST_MANIFEST_BYTES) + 1)
    if len(content) > MOST_MANIFEST_BYTES:
        raise ValueError(f"it has more than {MOST_MANIFEST_BYTES >> 20} MiB")
    return content


def refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def question_type_letters(questions: dict[str, Any] | None) -> str:
    """The types of a video's questions, in order, by their first letters; "" for none."""
    return "".join(
        str(question.get("question_type"))[:1]
        for question in (questions or {}).get("questions", ())
    )


def partial_folder(out: str | Path) -> Path:
    """The folder in which the data set `out` is written; a rename completes it."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".partial")
