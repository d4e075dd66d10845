"""Shards that could not be read while training: counted, written down, and the same after a resume.

shard gone or damaged ──> RUN/replaced.jsonl: shard, samples, from which position on, why ──> all ranks, and the run that goes on
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cjepa_dist.errors import UserError


class MissingShards:
    """The lost shards of a run, in `record`; up to `tolerate` samples (videos, as the manifest counts them) may be lost in all."""

    def __init__(self, record: Path | None = None, tolerate: int = 0) -> None:
        self.record, self.tolerate = record, tolerate
        self.lines: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """What all ranks have written so far; a line that a full disk or a kill cut off is left out."""
        if self.record is not None and self.record.exists():
            self.lines = [
                json.loads(line)
                for line in self.record.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]

    def at(self, shard: str, position: int) -> bool:
        """Whether a shard is lost to the samples from `position` on."""
        return any(line["shard"] == shard and line["position"] <= position for line in self.lines)

    def samples(self) -> int:
        """How many samples are lost, by any rank."""
        return sum({line["shard"]: line["samples"] for line in self.lines}.values())

    def add(self, shard: str, samples: int, position: int, error: UserError) -> None:
        """Note that `shard` is lost from `position` on. The error, if that is more than is tolerated."""
        self.read()
        total = self.samples() + (
            0 if any(line["shard"] == shard for line in self.lines) else samples
        )
        if total > self.tolerate:
            raise UserError(
                f"{error}. Or let others stand in for its {samples} samples: reading.max_missing_samples={total} (it is {self.tolerate})"
            ) from error
        line = {"shard": shard, "samples": samples, "position": position, "reason": str(error)}
        self.lines.append(line)
        if self.record is not None:
            with self.record.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        print(
            f"warning: {error}; others stand in for its {samples} samples, {total} of reading.max_missing_samples={self.tolerate}",
            flush=True,
        )
