"""How an experiment stands: `python -m slurm.status RUNS [watch=true] [seconds=10]`.

Job, state, node, step, rate, time left, last loss and restarts; below, why jobs failed and the last lines of their logs.
watch=true shows it again every `seconds`, until no job is in the queue or running. Exit code 1 if a job failed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cjepa_dist.config import merge
from cjepa_dist.config.fields import option
from slurm import record as records
from slurm.command import launch
from slurm.job_state import JobState, job_states
from slurm.jobs.job_log import log_path
from slurm.record import Record

COLUMNS = ("job", "state", "node", "step", "samples/s", "left", "loss", "restarts")


@dataclass
class Status:
    """How often to look."""

    watch: bool = option(False, "look again and again, until all jobs have ended")
    seconds: float = option(10.0, "from one look to the next", unit="seconds", least=0.1)


def main(arguments: list[str]) -> int:
    record = records.require_record([part for part in arguments if "=" not in part])
    config = merge.build(
        Status, OmegaConf.from_dotlist([part for part in arguments if "=" in part])
    )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    while True:
        found = job_states(record)
        if config.watch and console.is_terminal:
            console.clear()
        show(console, record, found)
        if not config.watch or not any(outcome.active for outcome in found.values()):
            return int(any(outcome.bad for outcome in found.values()))
        sys.stdout.flush()
        time.sleep(config.seconds)
        record = records.require_record([str(record.runs)])  # jobs may have been submitted again


def show(console: Console, record: Record, found: dict[str, JobState]) -> None:
    table = Table(*COLUMNS)
    for outcome in found.values():
        table.add_row(*(escape(cell) for cell in row(outcome)))
    console.print(table)
    bad = [outcome for outcome in found.values() if outcome.bad]
    for outcome in bad:
        console.print(f"{outcome.job.name}: {outcome.reason}", markup=False)
        for line in outcome.lines:
            console.print(f"    {line}", markup=False, soft_wrap=True)
        if outcome.lines:
            console.print(
                f"    (from {log_path(record, outcome.job.name)})", markup=False, soft_wrap=True
            )
    done, active = (
        sum(test)
        for test in (
            [o.state == "DONE" for o in found.values()],
            [o.active for o in found.values()],
        )
    )
    console.print(
        f"{done} of {len(found)} jobs done, {active} in the queue or running, {len(bad)} failed or cancelled"
    )
    if bad and not active:
        console.print(f"submit those again: python -m slurm.resume {record.runs}", soft_wrap=True)


def row(outcome: JobState) -> tuple[str, ...]:
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
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    launch(main, __doc__)
