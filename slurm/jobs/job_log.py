"""The log and the events of each job, in RUNS/.slurm."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from slurm.record import Record


def log_path(record: Record, name: str) -> Path:
    return record.state_dir / "logs" / f"{file_name(name)}.log"


TAIL_LINES = 12  # lines of a log in an error


def log_tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log that say something, of the last start; our own "error: ..." first if a launcher's words pushed it out."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 65536))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    found = [line.rstrip() for line in text.splitlines() if line.strip()]
    begin = max(
        (index + 1 for index, line in enumerate(found) if line.startswith("== ")), default=0
    )
    errors = [line for line in found[begin:-lines] if line.startswith("error: ")]
    return errors[-1:] + found[begin:][-lines:]


def file_name(name: str) -> str:
    return name.replace("/", ".")


def events_path(home: Path, name: str) -> Path:
    return home / "events" / f"{file_name(name)}.jsonl"


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_events(record: Record, name: str) -> list[dict[str, Any]]:
    """What a job said of itself, over all of its starts."""
    try:
        lines = events_path(record.state_dir, name).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]
