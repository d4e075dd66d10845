"""A copy of a data set on this node's own disk, made once a node and used by every job that comes there.

    DATA ──> SCRATCH/<name>-<xxh3 of its manifest>.partial, shard by shard, sizes checked ──rename──> SCRATCH/<name>-<xxh3>
    there already, and all sizes right: used as it is       jobs that come meanwhile wait (flock)

A data set that was made anew has another manifest, and so another copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from pathlib import Path

from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import file_checksum


def stage_dataset(data: Path, scratch: Path) -> Path:
    """The copy. Raises UserError, in a line, where there is no room for it or the disk cannot be written to."""
    host, began = socket.gethostname(), time.monotonic()
    manifest, digest = Manifest.load(data), file_checksum(data / MANIFEST_NAME)
    copy = scratch / f"{data.resolve().name}-{digest}"
    files = {
        f"{split}/{entry.name}": entry.bytes
        for split, entries in manifest.splits.items()
        for entry in entries
    }
    partial = copy.with_name(copy.name + ".partial")
    try:
        with open(copy.with_name(copy.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_complete(copy, files, digest):
                print(f"data are on {host} already: {copy}", flush=True)
                return copy
            for rest in (copy, partial):
                shutil.rmtree(rest, ignore_errors=True)
            needed, free = sum(files.values()), shutil.disk_usage(scratch).free
            if needed > free:
                raise UserError(
                    f"no room to stage {data}: {format_bytes(needed)} needed, {format_bytes(free)} free in {scratch} on {host}; "
                    "free some, take another scratch, or stage_data: false"
                )
            for name in [*files, MANIFEST_NAME]:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data / name, partial / name)
            if not is_complete(partial, files, digest):
                raise UserError(
                    f"staging {data} to {scratch} on {host} gave other sizes than its manifest says: python -m data_prep.verify data={data}"
                )
            os.rename(partial, copy)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot stage {data} to {scratch} on {host}: {error.strerror}") from error
    print(
        f"data staged on {host} in {time.monotonic() - began:.1f} s: {copy}, {format_bytes(sum(files.values()))}",
        flush=True,
    )
    return copy


def is_complete(copy: Path, files: dict[str, int], digest: str) -> bool:
    """Whether all shards are there with their sizes, and the manifest is the one with this checksum."""
    try:
        return file_checksum(copy / MANIFEST_NAME) == digest and all(
            (copy / name).stat().st_size == length for name, length in files.items()
        )
    except OSError:
        return False


def format_bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"
