"""Is a data set what was written? Every fault, named.

manifest.json ──each shard──> length, xxh3, tar, keys, every member ──> faults, one line each
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cjepa_dist.data.manifest import Manifest, ShardEntry, checksum
from cjepa_dist.data.shards import ANNOTATION, MATCH, QUESTIONS, TRUTH, WORLDS, Shard
from cjepa_dist.errors import UserError


def verify_folder(folder: str | Path) -> list[str]:
    """Every fault of a data set, one line each, naming the shard (and the key): [] if it is whole. UserError if there is none.

    Finds missing and extra files, truncation (also between two samples), flipped bytes, wrong or doubled keys, slots of a wrong shape or
    type, values that are not finite, JSON and truth that cannot be read. Goes on after a fault, so that one call names them all.
    """
    manifest = Manifest.load(folder)
    faults = []
    seen: dict[str, str] = {}
    for split, entries in manifest.splits.items():
        for entry in entries:
            path = Path(folder) / split / entry.name
            if path.is_file() and path.stat().st_size == entry.bytes and checksum(path) != entry.xxh3:
                faults.append(f"{path}: its bytes have changed (xxh3 is not the manifest's)")
            if entry.samples != len(entry.keys):
                faults.append(f"{path}: the manifest counts {entry.samples} samples and names {len(entry.keys)} keys")
            for key in entry.keys:
                if key in seen:
                    faults.append(f"{path}: key {key} is also in {seen[key]}")
                seen[key] = f"{split}/{entry.name}"
            faults += shard_faults(folder, split, entry, manifest)
        names = {entry.name for entry in entries}
        present = Path(folder) / split
        extra = sorted(p.name for p in present.iterdir() if p.name not in names) if present.is_dir() else []
        faults += [f"{present / name}: extra, the manifest does not know it" for name in extra]
    known = {"manifest.json", *manifest.splits}
    faults += [f"{path}: extra, the manifest does not know it" for path in sorted(Path(folder).iterdir()) if path.name not in known]
    return faults


def shard_faults(folder: str | Path, split: str, entry: ShardEntry, manifest: Manifest) -> list[str]:
    faults = []

    def attempt(read: Any, *arguments: Any) -> None:
        try:
            read(*arguments)
        except UserError as error:
            faults.append(str(error))

    try:
        with Shard(folder, split, entry) as shard:
            for key in entry.keys:
                attempt(shard.slots, key, manifest)
                attempt(shard.json, key, ANNOTATION)
                attempt(shard.json, key, QUESTIONS)
                for member in (TRUTH, WORLDS, MATCH):
                    attempt(shard.arrays, key, member)
    except UserError as error:
        faults.append(str(error))
    return faults
