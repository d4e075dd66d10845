"""Shards that cannot be read while a run trains: counted, recorded, the same after a resume.

shard missing or damaged ──> RUN/missing_shards.jsonl: shard, samples, position, reason
                              └──> read by all ranks, and by the run when it resumes
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import read_json_lines


class MissingShards:
    """The missing shards of a run, recorded in the file `record`.

    Up to `max_missing_samples` samples (videos, as the manifest counts them) may be missing.
    """

    def __init__(self, record: Path | None = None, max_missing_samples: int = 0) -> None:
        self.record, self.max_missing_samples = record, max_missing_samples
        self.lines: list[dict[str, Any]] = []
        self.reload()

    def reload(self) -> None:
        """Read what all ranks have written so far.

        A line that a full disk or a kill cut off is left out.
        """
        if self.record is not None and self.record.exists():
            self.lines = [content for _, content in read_json_lines(self.record)]

    def is_missing(self, shard: str, position: int) -> bool:
        """Whether a shard is missing for the samples from `position` on."""
        return any(line["shard"] == shard and line["position"] <= position for line in self.lines)

    def count_samples(self) -> int:
        """How many samples are missing, by the record of all ranks."""
        return sum({line["shard"]: line["samples"] for line in self.lines}.values())

    def add(self, shard: str, samples: int, position: int, error: UserError) -> None:
        """Record that `shard` is missing from `position` on. UserError if that is too much."""
        self.reload()
        known = any(line["shard"] == shard for line in self.lines)
        total = self.count_samples() + (0 if known else samples)
        if total > self.max_missing_samples:
            raise UserError(
                f"{error}. Or let others replace its {samples} samples: "
                f"reading.max_missing_samples={total} (it is {self.max_missing_samples})"
            ) from error
        line = {"shard": shard, "samples": samples, "position": position, "reason": str(error)}
        self.lines.append(line)
        if self.record is not None:
            with self.record.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        print(
            f"warning: {error}; others replace its {samples} samples, "
            f"{total} of reading.max_missing_samples={self.max_missing_samples}",
            flush=True,
        )
