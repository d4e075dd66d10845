"""Whether a checkpoint is intact. Without torch, so that tools that only look start fast."""

from __future__ import annotations

import json
from pathlib import Path

from cjepa_dist.runtime.files import file_checksum


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        checksums = json.loads((path / "checksums.json").read_text())
        wrong = [name for name, value in checksums.items() if file_checksum(path / name) != value]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(wrong)} changed" if wrong else None


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in `folder`, in order."""
    return sorted(
        int(p.name.removeprefix("step_")) for p in folder.glob("step_????????") if p.is_dir()
    )
