"""The last job of the graph: `python -m slurm.report RUNS` puts what is there side by side and says what is missing, and why.

runs with a checkpoint ──cjepa_dist.report──> RUNS/report/report.md ── + jobs without their output
"""

from __future__ import annotations

import subprocess
import sys

from cjepa_dist.errors import UserError
from slurm import record as records
from slurm.command import launch
from slurm.job_state import JobState, job_states


def main(arguments: list[str]) -> int:
    record = records.require_record(arguments)
    found = job_states(record)
    runs = [
        outcome.job.run_dir
        for outcome in found.values()
        if outcome.job.is_training and "world_model/own_slot/" not in outcome.job.name
    ]
    there = [
        run
        for run in runs
        if (run / "config.yaml").is_file()
        and list((run / "checkpoints").glob("step_????????/checksums.json"))
    ]
    named = sorted(
        there, key=lambda run: run.relative_to(record.runs).parts[0] != "aloe"
    )  # the world models of an ALOE follow by themselves
    out = record.runs / "report"
    out.mkdir(parents=True, exist_ok=True)
    page = out / "report.md"
    if named:
        split = record.experiment.get("split", "val")
        line = [
            sys.executable,
            "-m",
            "cjepa_dist.report",
            f"runs={','.join(map(str, named))}",
            f"out={out}",
            f"split={split}",
        ]
        line += [] if record.experiment.get("graphs", True) else ["graphs=false"]
        if (read := record.runs / "read").is_dir():
            line.append(f"read={read}")
        if subprocess.run(line, check=False).returncode:
            raise UserError("the report could not be made; its own message stands above")
    missing = [
        outcome
        for outcome in found.values()
        if outcome.state != "DONE" and outcome.job.stage != "report"
    ]
    text = page.read_text(encoding="utf-8") if named else "# Report\n\nNo run has a checkpoint.\n"
    temporary = page.with_suffix(".partial")
    temporary.write_text(missing_jobs_section(missing, len(found) - 1) + text, encoding="utf-8")
    temporary.replace(page)
    print(f"wrote {page}; {len(missing)} of {len(found) - 1} jobs before it are missing")
    return 0


def missing_jobs_section(missing: list[JobState], total: int) -> str:
    """A section for what is not there; empty if all is."""
    if not missing:
        return ""
    head = f"# Missing: {len(missing)} of {total} jobs\n\nThe tables below are without these. `python -m slurm.resume` runs them again.\n\n"
    rows = []
    for outcome in missing:
        last = outcome.lines[-1] if outcome.lines else ""
        rows.append(
            f"| {outcome.job.name} | {outcome.state} | {escape_cell(outcome.reason)} | {escape_cell(last)} |"
        )
    return (
        head
        + "\n".join(["| job | state | why | last line of its log |", "|---|---|---|---|", *rows])
        + "\n\n"
    )


def escape_cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    launch(main, __doc__)
