"""How an experiment stands: `python -m slurm.status RUNS`.

Job, state, node, step, rate, time left, last loss and restarts; below, why jobs failed and the last lines of their logs.
Exit code 1 if one did.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slurm import record as records
from slurm.command import command
from slurm.outcome import Outcome, log_of, outcomes

COLUMNS = ("job", "state", "node", "step", "samples/s", "left", "loss", "restarts")


def main(arguments: list[str]) -> int:
    record = records.need(arguments)
    found = outcomes(record)
    table = Table(*COLUMNS)
    for outcome in found.values():
        table.add_row(*(escape(cell) for cell in row(outcome)))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    bad = [outcome for outcome in found.values() if outcome.bad]
    for outcome in bad:
        console.print(f"{outcome.job.name}: {outcome.reason}", markup=False)
        for line in outcome.lines:
            console.print(f"    {line}", markup=False, soft_wrap=True)
        if outcome.lines:
            console.print(f"    (from {log_of(record, outcome.job.name)})", markup=False, soft_wrap=True)
    done, active = (sum(test) for test in ([o.state == "DONE" for o in found.values()], [o.active for o in found.values()]))
    console.print(f"{done} of {len(found)} jobs done, {active} in the queue or running, {len(bad)} failed or cancelled")
    if bad and not active:
        console.print(f"submit those again: python -m slurm.resume {record.runs}", soft_wrap=True)
    return 1 if bad else 0


def row(outcome: Outcome) -> tuple[str, ...]:
    state = outcome.state + (f" ({outcome.reason})" if outcome.active and outcome.reason else "")
    step = "" if outcome.step is None else f"{outcome.step}/{outcome.steps or '?'}"
    running = outcome.state == "RUNNING"
    return (
        outcome.job.name, state, outcome.nodes, step, "" if outcome.rate is None else f"{outcome.rate:.0f}",
        duration(outcome.left) if running else "", "" if outcome.loss is None else f"{outcome.loss:.4g}", str(outcome.restarts or ""),
    )  # fmt: skip


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


if __name__ == "__main__":
    command(main, __doc__)
