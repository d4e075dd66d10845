"""The log and the events of each job.

RUNS/.slurm/logs/<job>.log        what its commands printed, over all starts
RUNS/.slurm/events/<job>.jsonl    a line for each start, stop, failure and end
RUNS/.slurm/progress/<job>.json   how far its command is (cjepa_dist/runtime/progress.py)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TAIL_LINES = 12  # lines of a log in an error message
START_MARK = "== "  # the first characters of the line that opens a command in a log


def file_name(job: str) -> str:
    return job.replace("/", ".")


def log_path(state_dir: Path, job: str) -> Path:
    return state_dir / "logs" / f"{file_name(job)}.log"


def progress_path(state_dir: Path, job: str) -> Path:
    return state_dir / "progress" / f"{file_name(job)}.json"


def events_path(state_dir: Path, job: str) -> Path:
    return state_dir / "events" / f"{file_name(job)}.jsonl"


def append_event(state_dir: Path, job: str, event: dict[str, Any]) -> None:
    path = events_path(state_dir, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(event) + "\n")


def read_events(state_dir: Path, job: str) -> list[dict[str, Any]]:
    """The events of a job over all of its starts, oldest first."""
    try:
        lines = events_path(state_dir, job).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def log_tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of the last command in a log, without empty ones.

    Our own "error: ..." comes first if the launcher's messages after it pushed it out.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 65536))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    found = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(found) if line.startswith(START_MARK)]
    begin = starts[-1] + 1 if starts else 0
    errors = [line for line in found[begin:-lines] if line.startswith("error: ")]
    return errors[-1:] + found[begin:][-lines:]
