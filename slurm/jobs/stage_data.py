"""Copies a data set to this node's own disk, once for all jobs of the node.

    DATA ──> SCRATCH/<name>-<xxh3 of its manifest>.partial, shard by shard, sizes checked
         ──rename──> SCRATCH/<name>-<xxh3 of its manifest>

A copy that is there, with the right sizes, is used as it is. Jobs that come while it is made wait
for it (flock). A data set that was made anew has another manifest, and so another copy.
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
    """The folder of the copy. Raises UserError where the disk is full or cannot be written to."""
    host, began = socket.gethostname(), time.monotonic()
    manifest, digest = Manifest.load(data), file_checksum(data / MANIFEST_NAME)
    copy = scratch / f"{data.resolve().name}-{digest}"
    sizes = {
        f"{split}/{entry.name}": entry.bytes
        for split, entries in manifest.splits.items()
        for entry in entries
    }
    total, partial = sum(sizes.values()), copy.with_name(copy.name + ".partial")
    try:
        with open(copy.with_name(copy.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_complete(copy, sizes, digest):
                print(f"data are on {host} already: {copy}", flush=True)
                return copy
            for old in (copy, partial):
                shutil.rmtree(old, ignore_errors=True)
            free = shutil.disk_usage(scratch).free
            if total > free:
                raise UserError(
                    f"no room to stage {data}: {format_bytes(total)} needed, {format_bytes(free)}"
                    f" free in {scratch} on {host}; free some, take another scratch, or set"
                    " stage_data: false"
                )
            for name in [*sizes, MANIFEST_NAME]:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data / name, partial / name)
            if not is_complete(partial, sizes, digest):
                raise UserError(
                    f"the copy of {data} in {scratch} on {host} has other sizes than its manifest"
                    f" says; check the data: python -m data_prep.verify data={data}"
                )
            os.rename(partial, copy)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot stage {data} to {scratch} on {host}: {error.strerror}") from error
    seconds = time.monotonic() - began
    size = format_bytes(total)
    print(f"data staged on {host} in {seconds:.1f} s: {copy}, {size}", flush=True)
    return copy


def is_complete(copy: Path, sizes: dict[str, int], digest: str) -> bool:
    """Whether all shards have their sizes and the manifest has this checksum."""
    try:
        return file_checksum(copy / MANIFEST_NAME) == digest and all(
            (copy / name).stat().st_size == length for name, length in sizes.items()
        )
    except OSError:
        return False


def format_bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"
