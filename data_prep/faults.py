"""What is wrong with an input: collected in one pass, then told in one line or left out.

found.add("train/2_pixels.mp4", "slots are ...", scene=2) ──┬──> one line, cut after some
                                                            └──> lines of skipped.jsonl
"""

from __future__ import annotations

from typing import Any

from cjepa_dist.errors import UserError

MOST_TOLD = 8


class Faults:
    """Faults of an input. `entries`: each as JSON, `{what, reason, ...}`."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, what: str, reason: str, **facts: Any) -> None:
        """`what` is left out with skip_bad, for this reason; `facts` name it further."""
        self.entries.append({"what": what, "reason": reason, **facts})

    def error(self, place: str) -> UserError:
        """All faults in one line, cut after some, with their number."""
        told = [f"{entry['what']}: {entry['reason']}" for entry in self.entries[:MOST_TOLD]]
        if more := len(self.entries) - len(told):
            told.append(f"and {more} more")
        number = f"{len(self.entries)} faults: " if len(self.entries) > 1 else ""
        advice = "mend them, or leave them out with skip_bad=true"
        return UserError(f"{place}: {number}{'; '.join(told)}; {advice}")
