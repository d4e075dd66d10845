"""Fingerprints: what a result depends on, so that no other is taken for it.

    a data set        encoder, dtype, shape, empty slot and the shards of each split, by checksums
    files             their names and bytes
    a model           checkpoint/run.py: its weights, and the config fields that decide what it does

A fingerprint is written with every result, and compared before the result is used again, resumed or
merged. Paths, names and times are no part of it: a copy is the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from cjepa_dist.config.fields import option
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.storage import is_remote
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum

Fingerprint = dict[str, Any]  # JSON: names and what they stand for, in tables of tables


def fingerprint_of(content: Any) -> str:
    """xxh3 (64 bit, hex) of anything that JSON can hold."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def dataset_fingerprint(
    manifest: Manifest, splits: Collection[str] = (), videos: int = 0
) -> Fingerprint:
    """The fingerprint of a data set, or of `splits` of it; nothing but the manifest is read.

    `videos`: of shards that hold only later videos of a split nothing depends; 0 = all.
    """
    shards = {}
    for split in splits or manifest.splits:
        used, count = [], 0
        for entry in manifest.splits.get(split, []):
            if videos and count >= videos:
                break
            used.append([entry.xxh3, entry.keys])
            count += len(entry.keys)
        shards[split] = fingerprint_of(used)
    return {
        "encoder": manifest.encoder,
        "dtype": manifest.dtype,
        "shape": list(manifest.shape),
        "empty_slot": fingerprint_of(manifest.empty_slot),
        "shards": shards,
    }


def files_fingerprint(files: Iterable[Path], folder: Path | None = None) -> str:
    """xxh3 of the bytes of files, and of their names below `folder` if there is one; "" for none.

    Every byte is read: 0.27 s of CPU a GiB, beside the time of the disk. Raises UserError if a file
    cannot be read.
    """
    found = []
    for file in files:
        try:
            name = file.relative_to(folder).as_posix() if folder else ""
            found.append([name, file_checksum(file)])
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return fingerprint_of(sorted(found)) if found else ""


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Where two fingerprints differ, one entry each: `shards.train`, `dtype (float16, not ...)`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            line
            for key in dict.fromkeys([*before, *now])
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    if json.loads(json.dumps(before)) == json.loads(json.dumps(now)):
        return []
    if name.rpartition(".")[2] in SAID and before is not None and now is not None:
        return [f"{name} ({before}, not {now})"]
    return [name]


# The fields whose values say something to a reader; of the others only the name is shown.
SAID = {"encoder", "dtype", "shape", "step", "mode", "divergence", "future_frames", "videos"}
SAID |= {"precision", "splits", "all_objects", "part", "seed", "run"}


def redo_option() -> Any:
    """The config field `redo`."""
    return option(False, "make it anew beside the data set in `out`, which it then replaces")


def check_not_input(out: str | Path, *inputs: str) -> None:
    """Raises UserError where the folder `out`, which redo=true replaces, is what is read."""
    for path in filter(None, inputs):
        if not is_remote(path) and Path(path).resolve().is_relative_to(Path(out).resolve()):
            raise UserError(f"out={out} holds {path}, which is read: choose another out=")


def holds_already(out: str | Path, source: Mapping[str, Any], *, redo: bool) -> bool:
    """Whether the folder `out` holds a data set that was made from `source`, all of it.

    `source` is that of the manifest; where it has a "fingerprint", this and "part" are compared and
    the rest is not. With `redo` nothing in `out` counts. Raises UserError, naming what differs,
    where `out` holds another data set.
    """
    if redo or not (Path(out) / MANIFEST_NAME).exists():
        return False
    held = Manifest.load(out).source
    if "fingerprint" in source and "fingerprint" not in held:
        raise UserError(
            f"{out} holds a data set that does not say what it was made from; choose another out=,"
            " or set redo=true to replace it"
        )
    before, now = compared(held), compared(source)
    if lost := held.get("lost"):
        count = sum(lost.values())
        raise UserError(
            f"{out} has lost {count} videos in a repair: set redo=true to make it anew, or keep it"
        )
    if found := differences(before, now):
        raise UserError(
            f"{out} holds another data set: it differs in {', '.join(found)}; choose another out=,"
            " or set redo=true to replace it"
        )
    return True


def compared(source: Mapping[str, Any]) -> dict[str, Any]:
    """What of a manifest's `source` tells two data sets apart."""
    if "fingerprint" in source:
        return {"part": source.get("part"), **source["fingerprint"]}
    return {name: value for name, value in source.items() if name != "lost"}
