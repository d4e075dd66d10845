"""Break short runs in every known way, resume each to its end, and compare the weights.

    python -m tools.fault_drill data=DIR out=OUT

    an undisturbed run  ──┬──> final weights
    fault ──> resumed   ──┘    equal bit for bit?  ──> OUT/table.md; exit code 1 if any differs

Faults are real where possible: signals and kills are sent from here, the full disk is a small
tmpfs (which needs root), processes are started by torchrun and by accelerate launch. A NaN, a hang
and death while writing a checkpoint come from CJEPA_FAULT (resilience/fault_injection.py).
"""

from __future__ import annotations

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa_dist.config import command_line
from cjepa_dist.errors import UserError
from tools.fault_drill.faults import FAULTS
from tools.fault_drill.runs import DrillError, DrillRun, end_ignoring_signals, require
from tools.fault_drill.schema import FaultDrill

HEAD = (
    "| fault | processes | what happened | exit code | resumed from | final weights equal |",
    "|---|---|---|---|---|---|",
)


@dataclass
class FaultResult:
    """One row of the table."""

    what: str
    code: int
    resumed: str
    equal: bool
    skipped: str = ""


def main(config: FaultDrill) -> int:
    """Try the faults, write the table. Raises UserError for an unknown fault."""
    faults = [(name, n) for n in (1, 2) for name, fault in FAULTS.items() if n in fault.processes]
    known = [f"{name}@{n}" for name, n in faults]
    if unknown := sorted(set(config.only) - set(known)):
        raise UserError(f"only: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    if config.only:
        faults = [(name, n) for name, n in faults if f"{name}@{n}" in config.only]
    end_ignoring_signals()
    undisturbed = UndisturbedRuns(config)
    results: dict[tuple[str, int], FaultResult] = {}
    with ThreadPoolExecutor(config.at_once) as pool:
        started = {pool.submit(run_timed, config, *fault, undisturbed): fault for fault in faults}
        for future in as_completed(started):
            fault = started[future]
            results[fault], seconds = future.result()
            print(f"{format_row(*fault, results[fault])}  {seconds:.0f} s", flush=True)
            rows = [format_row(*key, results[key]) for key in faults if key in results]
            (Path(config.out) / "table.md").write_text("\n".join([*HEAD, *rows, ""]))
    failed = sum(not result.equal for result in results.values())
    print("\n" + "\n".join([*HEAD, *rows]))
    print(f"\n{len(faults)} faults, {failed} of them left a trace")
    return 1 if failed else 0


def format_row(name: str, processes: int, result: FaultResult) -> str:
    equal = result.skipped or ("yes" if result.equal else "NO")
    cells = (name, processes, result.what, result.code, result.resumed, equal)
    return f"| {' | '.join(map(str, cells))} |"


class UndisturbedRuns:
    """Undisturbed runs by number of processes, without and with the NaN; made when needed."""

    def __init__(self, config: FaultDrill) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.runs: dict[tuple[int, bool], DrillRun] = {}

    def get(self, processes: int, *, nan: bool) -> DrillRun:
        """A finished run. Raises UserError if it failed."""
        with self.lock:
            if (processes, nan) not in self.runs:
                run = DrillRun(self.config, "undisturbed nan" if nan else "undisturbed", processes)
                if code := run.finish(fault=f"nan@3:rank{processes - 1}" if nan else ""):
                    raise UserError(
                        f"the undisturbed run failed with exit code {code}; see {run.log}"
                    )
                self.runs[processes, nan] = run
            return self.runs[processes, nan]


def run_timed(
    config: FaultDrill, name: str, processes: int, undisturbed: UndisturbedRuns
) -> tuple[FaultResult, float]:
    """The result of one fault, and how many seconds it took."""
    began = time.monotonic()
    try:
        result = run_fault(config, name, processes, undisturbed)
    except DrillError as error:
        result = FaultResult(f"FAILED: {error}", -1, "", False)
    return result, time.monotonic() - began


def run_fault(
    config: FaultDrill, name: str, processes: int, undisturbed: UndisturbedRuns
) -> FaultResult:
    """Break a run, resume it to the end, compare. Raises DrillError if it did not go so."""
    fault = FAULTS[name]
    if fault.needs_root and os.geteuid() != 0:
        return FaultResult("not tried: a small tmpfs needs root", 0, "", True, skipped="not tried")
    run = DrillRun(config, name, processes, fault.launcher)
    run.reference = undisturbed.get(processes, nan=fault.nan)
    expected = run.reference.weights()
    what, code = fault.break_run(run)
    codes = " or ".join(map(str, fault.exit_codes))
    require(code in fault.exit_codes, f"exit code {code}, not {codes}; see {run.log}")
    if not (run.folder / "done.json").exists():
        require(run.finish() == 0, f"not resumed; see {run.log}")
    resumed = re.findall(r"resumed from \S*step_0*(\d+)", run.text())
    weights = run.weights()
    equal = weights.keys() == expected.keys() and all(
        torch.equal(weights[key], expected[key]) for key in weights
    )
    skipped = run.skipped_steps()
    require(skipped == int(fault.nan), f"{skipped} skipped steps counted")
    return FaultResult(what, code, f"step {resumed[-1]}" if resumed else "not needed", equal)


if __name__ == "__main__":
    command_line.launch(FaultDrill, main)
