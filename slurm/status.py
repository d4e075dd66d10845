"""The jobs of an experiment: `python -m slurm.status RUNS [watch=true] [seconds=30]`.

Shows state, node, step, speed, time left, loss and restarts of each job, and why jobs failed.
watch=true shows it every `seconds`, until no job is in the queue or running. Exit code 1 if a job
failed.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cjepa_dist.config import command_line, merge
from cjepa_dist.config.fields import option
from slurm.command import launch
from slurm.job_state import JobState, job_states
from slurm.jobs.job_log import log_path
from slurm.jobs.slurm_command import SlurmError
from slurm.record import Record, require_record

COLUMNS = ("job", "state", "node", "step", "samples/s", "left", "loss", "restarts")


@dataclass
class Status:
    """How often to look."""

    watch: bool = option(False, "show it again and again, until all jobs have ended")
    seconds: float = option(30.0, "from one time to the next", unit="seconds", least=0.1, most=1e6)


def main(arguments: list[str]) -> int:
    folders, pairs = command_line.split_arguments(arguments, ("watch", "seconds"))
    record = require_record(folders)
    config = merge.build(Status, merge.read_pairs(pairs))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    while True:
        try:
            states = list(job_states(record).values())
        except SlurmError as error:
            if not config.watch:
                raise
            console.print(str(error), markup=False, soft_wrap=True)
        else:
            if config.watch and console.is_terminal:
                console.clear()
            show(console, record, states)
            if not config.watch or not any(state.active for state in states):
                return int(any(state.failed for state in states))
        sys.stdout.flush()
        time.sleep(config.seconds)
        record = require_record([str(record.runs)])  # jobs may have been submitted again


def show(console: Console, record: Record, states: list[JobState]) -> None:
    table = Table(*COLUMNS)
    for state in states:
        table.add_row(*(escape(cell) for cell in table_row(state)))
    console.print(table)
    failed = [state for state in states if state.failed]
    for state in states:
        if state.retried and not state.failed:
            times, why = len(state.retried), state.retried[-1]
            console.print(
                f"{state.job.name}: started again {times} times, last: {why}", markup=False
            )
    for state in failed:
        console.print(f"{state.job.name}: {state.reason}", markup=False)
        lines = list(state.log_lines)
        if lines:
            lines.append(f"(from {log_path(record.state_dir, state.job.name)})")
        for line in lines:
            console.print(f"    {line}", markup=False, soft_wrap=True)
    done = sum(state.state == "DONE" for state in states)
    active = sum(state.active for state in states)
    console.print(
        f"{done} of {len(states)} jobs done, {active} in the queue or running,"
        f" {len(failed)} failed or cancelled"
    )
    if failed and not active:
        console.print(f"run those again: cjepa resume {record.runs}", soft_wrap=True)


def table_row(state: JobState) -> tuple[str, ...]:
    reason = f" ({state.reason})" if state.active and state.reason else ""
    running = state.state == "RUNNING"
    speed, loss = state.samples_per_second, state.loss
    return (
        state.job.name,
        state.state + reason,
        state.nodes,
        "" if state.step is None else f"{state.step}/{state.total_steps or '?'}",
        "" if speed is None else f"{speed:.0f}",
        format_duration(state.seconds_left) if running else "",
        "" if loss is None else f"{loss:.4g}",
        str(state.restarts or ""),
    )


def format_duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


if __name__ == "__main__":
    launch(main, __doc__)
