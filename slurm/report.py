"""The last job of an experiment, one report over all runs: `python -m slurm.report RUNS`.

runs with a checkpoint ──cjepa_dist.report──> RUNS/report/report.html, report.md
jobs without their outputs ──head=──> a table at the head of both: what is missing, and why
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cjepa_dist.errors import UserError
from cjepa_dist.reporting.page.render import Page, render_page
from cjepa_dist.runtime.files import write_text_atomic
from slurm.command import launch
from slurm.job_state import JobState, job_states
from slurm.jobs.slurm_command import SlurmError
from slurm.record import Record, require_record


def main(arguments: list[str]) -> int:
    record = require_record(arguments)
    states = [state for state in states_of(record).values() if state.job.stage != "report"]
    folder = record.runs / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.txt").unlink(missing_ok=True)  # of an earlier report: this one may fail
    missing = [state for state in states if state.state != "DONE"]
    head = missing_jobs_section(missing, len(states))
    if runs := runs_to_report(record, states):
        write_report(record, runs, head)
    else:
        title = "No run has a checkpoint"
        write_text_atomic(folder / "report.md", f"{head}# Report\n\n{title}.\n")
        write_text_atomic(folder / "report.html", render_page(Page(title, head=head)))
    written = folder / "report.html"
    print(f"wrote {written}; {len(missing)} of {len(states)} jobs before it are missing")
    return 0


def states_of(record: Record) -> dict[str, JobState]:
    """Of all jobs; without squeue where that does not answer: a report is better than none."""
    try:
        return job_states(record)
    except SlurmError as error:
        print(f"warning: {error}", flush=True)
        return job_states(record, accounts_only=True)


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


def write_report(record: Record, runs: list[Path], head: str) -> None:
    """`head`: Markdown that comes first. Raises UserError if cjepa_dist.report fails.

    Its own message is above.
    """
    experiment = record.experiment
    command = [
        *(sys.executable, "-m", "cjepa_dist.report"),
        f"runs={json.dumps(list(map(str, runs)), ensure_ascii=False)}",
        f"out={record.runs / 'report'}",
        f"split={experiment.get('split', 'val')}",
    ]
    if not experiment.get("graphs", True):
        command.append("graphs=false")
    if (folder := record.runs / "shared_readers").is_dir():
        command.append(f"reader_results={folder}")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".md") as file:
        file.write(head)
        file.flush()
        if subprocess.run([*command, f"head={file.name}"], check=False).returncode:
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
