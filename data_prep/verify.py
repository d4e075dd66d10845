"""Checks a folder of slot shards against its manifest.

DIR ──verify_folder──> faults, one line each ──> exit code 0 (none), 1 (some), 2 (there is no data set)
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from cjepa_dist.config import launch, option
from cjepa_dist.data.shards import Manifest
from cjepa_dist.data.verify import verify_folder


@dataclass
class Verify:
    """Check a folder of slot shards: every file, checksum, key, shape and value."""

    data: str = option(MISSING, "folder of slot shards")


def main(config: Verify) -> int:
    """Print the faults, or one line of what is there; 1 if there are faults."""
    manifest = Manifest.load(config.data)
    faults = verify_folder(config.data)
    for fault in faults:
        print(fault)
    size = sum(entry.bytes for entries in manifest.splits.values() for entry in entries)
    shards = sum(len(entries) for entries in manifest.splits.values())
    videos = ", ".join(f"{name} {manifest.count(name)}" for name in manifest.splits)
    verdict = f"{len(faults)} faults" if faults else "whole"
    print(f"{config.data}: {verdict}; videos: {videos}; {shards} shards, {size / 1e6:.1f} MB, slots {manifest.shape} {manifest.dtype}")
    return 1 if faults else 0


if __name__ == "__main__":
    launch(Verify, main)
