"""Options of `python -m tools.fault_drill`."""

from __future__ import annotations

from dataclasses import dataclass

from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING


@dataclass
class FaultDrill:
    """Break short runs in every known way, resume each, compare it with an undisturbed run."""

    data: str = option(MISSING, "folder of slot shards, 7 slots x 128", path=True)
    out: str = option(MISSING, "folder for the runs and table.md", path=True)
    only: list[str] = option(
        [], "faults to try: name as in the table, @, number of processes (`hang@2`); none = all"
    )
    at_once: int = option(2, "faults that are tried at the same time", least=1)
    hang_timeout_minutes: float = option(
        0.0,
        "loop.hang_timeout_minutes of the run that hangs; 0 = three times what an undisturbed run"
        " took, but at least 0.2",
        unit="minutes",
        least=0.0,
        most=1e6,
    )
