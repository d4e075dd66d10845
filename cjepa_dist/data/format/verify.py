"""Verifies a data set: lists every fault.

manifest.json ──each shard, by several processes──> length, xxh3, tar, keys, every member ──┐
folder ──files that the manifest does not list──────────────────────────────────────────────┤
                                                                                            v
                                                                                         [Fault]
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa_dist.data.format.journal import JOURNAL_NAME
from cjepa_dist.data.format.manifest import (
    MANIFEST_NAME,
    SKIPPED_NAME,
    Manifest,
    ShardEntry,
    question_type_letters,
)
from cjepa_dist.data.format.sample import ANNOTATION, MATCH, QUESTIONS, TRUTH, WORLDS
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum
from cjepa_dist.runtime.processes import start_pool_worker


@dataclass(frozen=True)
class Fault:
    """What is wrong, in a line, and with which file (for a shard: where it is, or should be)."""

    text: str
    path: Path


def verify_dataset(folder: str | Path, processes: int = 1) -> list[Fault]:
    """Every fault of a data set, naming the shard (and the key); [] if there is no fault.

    Finds missing and extra files, truncation (also between two samples), flipped bytes, wrong or
    repeated keys, slots of a wrong shape or type, values that are not finite, and JSON or ground
    truth that cannot be read. Continues after a fault, so that one call names them all. UserError
    if the folder holds no data set.
    """
    manifest = Manifest.load(folder)
    shards = [(split, entry) for split, entries in manifest.splits.items() for entry in entries]
    about = dataclasses.replace(manifest, splits={})
    jobs = [(folder, split, entry, about) for split, entry in shards]
    if processes > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(
            min(processes, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_pool_worker,
        ) as pool:
            found = list(pool.map(shard_faults, *zip(*jobs)))
    else:
        found = [shard_faults(*job) for job in jobs]
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    for (split, entry), texts in zip(shards, found):
        path = Path(folder) / split / entry.name
        for key in entry.keys:
            if key in seen:
                texts.append(f"{path}: key {key} is also in {seen[key]}")
            seen[key] = f"{split}/{entry.name}"
        faults += [Fault(text, path) for text in texts]
    return faults + extra_files(Path(folder), manifest)


def extra_files(folder: Path, manifest: Manifest) -> list[Fault]:
    """Files and folders that the manifest does not list."""
    known = {folder / name for name in (MANIFEST_NAME, SKIPPED_NAME, JOURNAL_NAME)}
    known |= {folder / split for split in manifest.splits}
    known |= {
        folder / split / entry.name
        for split, entries in manifest.splits.items()
        for entry in entries
    }
    places = [folder, *(folder / split for split in manifest.splits if (folder / split).is_dir())]
    extra = {path for place in places for path in place.iterdir()} - known
    return [Fault(f"{path}: extra, the manifest does not list it", path) for path in sorted(extra)]


def shard_faults(
    folder: str | Path, split: str, entry: ShardEntry, manifest: Manifest
) -> list[str]:
    """Faults of one shard; of `manifest` only shape and type are used."""
    faults: list[str] = []

    def attempt(read: Any, *arguments: Any) -> None:
        try:
            read(*arguments)
        except UserError as error:
            faults.append(str(error))

    path = Path(folder) / split / entry.name
    try:
        whole = path.is_file() and path.stat().st_size == entry.bytes
        if whole and file_checksum(path) != entry.xxh3:
            faults.append(f"{path}: its bytes have changed (xxh3 is not the manifest's)")
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    if entry.samples != len(entry.keys):
        faults.append(
            f"{path}: the manifest counts {entry.samples} samples and names {len(entry.keys)} keys"
        )
    try:
        with ShardReader(folder, split, entry) as shard:
            for i, key in enumerate(entry.keys):
                attempt(shard.read_slots, key, manifest)
                attempt(shard.read_json, key, ANNOTATION)
                types = entry.question_types[i] if entry.question_types else ""
                attempt(check_questions, shard, key, types)
                for member in (TRUTH, WORLDS, MATCH):
                    attempt(shard.read_arrays, key, member)
    except UserError as error:
        faults.append(str(error))
    return faults


def check_questions(shard: ShardReader, key: str, types: str) -> None:
    """Raises UserError if a video's questions are of other types than the manifest says."""
    if (found := question_type_letters(shard.read_json(key, QUESTIONS))) != types:
        raise UserError(
            f"shard {shard.path}, key {key}: has questions of the types {found!r}, "
            f"the manifest says {types!r}"
        )
