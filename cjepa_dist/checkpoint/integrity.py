"""Is a checkpoint what was written? Without torch, so that a tool that only looks starts at once."""

from __future__ import annotations

import json
from pathlib import Path

import xxhash


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = json.loads((path / "checksums.json").read_text())
        wrong = [name for name, value in sums.items() if checkpoint_checksum(path / name) != value]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(wrong)} changed" if wrong else None


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in folder.glob("step_????????") if p.is_dir())


def checkpoint_checksum(path: Path) -> str:
    with path.open("rb") as stream:
        digest = xxhash.xxh3_64()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
