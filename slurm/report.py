"""The last job of an experiment, one report over all runs: `python -m slurm.report RUNS`.

runs with a checkpoint ──cjepa_dist.report──> RUNS/report/report.md
jobs without their outputs ──> a section at its head: what is missing, and why
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import write_text_atomic
from slurm.command import launch
from slurm.job_state import JobState, job_states
from slurm.record import Record, require_record


def main(arguments: list[str]) -> int:
    record = require_record(arguments)
    states = [state for state in job_states(record).values() if state.job.stage != "report"]
    page = record.runs / "report" / "report.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    if runs := runs_to_report(record, states):
        write_report(record, runs)
        text = page.read_text(encoding="utf-8")
    else:
        text = "# Report\n\nNo run has a checkpoint.\n"
    missing = [state for state in states if state.state != "DONE"]
    write_text_atomic(page, missing_jobs_section(missing, len(states)) + text)
    print(f"wrote {page}; {len(missing)} of {len(states)} jobs before it are missing")
    return 0


def runs_to_report(record: Record, states: list[JobState]) -> list[Path]:
    """Run directories with a checkpoint, ALOE first: the report finds their world models itself.

    The control appears in the evaluations of the world models, so it is left out.
    """
    runs = [
        state.job.run_dir
        for state in states
        if state.job.is_training and not state.job.name.startswith("world_model/own_slot/")
    ]
    there = [
        run
        for run in runs
        if (run / "config.yaml").is_file()
        and any((run / "checkpoints").glob("step_????????/checksums.json"))
    ]
    return sorted(there, key=lambda run: run.relative_to(record.runs).parts[0] != "aloe")


def write_report(record: Record, runs: list[Path]) -> None:
    """Raises UserError if cjepa_dist.report fails; its own message is above."""
    experiment = record.experiment
    command = [
        *(sys.executable, "-m", "cjepa_dist.report"),
        f"runs={','.join(map(str, runs))}",
        f"out={record.runs / 'report'}",
        f"split={experiment.get('split', 'val')}",
    ]
    if not experiment.get("graphs", True):
        command.append("graphs=false")
    if (folder := record.runs / "shared_readers").is_dir():
        command.append(f"reader_results={folder}")
    if subprocess.run(command, check=False).returncode:
        raise UserError("the report could not be made; its own message stands above")


def missing_jobs_section(missing: list[JobState], total: int) -> str:
    """What the report lacks; empty if all jobs are done."""
    if not missing:
        return ""
    rows = [
        f"# Missing: {len(missing)} of {total} jobs",
        "",
        "The tables below are without these. `cjepa resume RUNS` runs them again.",
        "",
        "| job | state | why | last line of its log |",
        "|---|---|---|---|",
    ]
    for state in missing:
        last = state.log_lines[-1] if state.log_lines else ""
        cells = (state.job.name, state.state, escape_cell(state.reason), escape_cell(last))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\n"


def escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    launch(main, __doc__)
