"""The time of day as text."""

from __future__ import annotations

from datetime import datetime, timezone


def timestamp() -> str:
    """Now, in UTC, as ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
