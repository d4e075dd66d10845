"""Break short runs in every way we know, resume each to its end, and compare: `python -m tools.fault_drill data=DIR out=DIR2`.

    an undisturbed run  ──┬──> final weights
    fault ──> resumed   ──┘    equal bit for bit?  ──> OUT/table.md, exit code 1 if any fault left a trace

Faults are real where they can be: signals and kills come from here, the full disk is a small tmpfs (needs root), processes are started by
torchrun and by accelerate launch. NaN, a hang and death within the writing of a checkpoint come from CJEPA_FAULT (resilience/fault_injection.py).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa_dist.config import command_line
from cjepa_dist.errors import UserError
from tools.fault_drill.faults import FAULTS
from tools.fault_drill.runs import DrillError, DrillRun, require
from tools.fault_drill.schema import FaultDrill


@dataclass
class FaultResult:
    what: str
    code: int
    resumed: str
    equal: bool
    skipped: str = ""


def main(config: FaultDrill) -> int:
    wanted = [
        (name, n) for n in (1, 2) for name, (_, counts, _, _) in FAULTS.items() if n in counts
    ]
    if config.only:
        if unknown := set(config.only) - {f"{name}@{n}" for name, n in wanted}:
            raise UserError(
                f"only: unknown {', '.join(sorted(unknown))}; there are {', '.join(f'{name}@{n}' for name, n in wanted)}"
            )
        wanted = [(name, n) for name, n in wanted if f"{name}@{n}" in config.only]
    rows = [
        "| fault | processes | what happened | exit code | resumed from | final weights equal |",
        "|---|---|---|---|---|---|",
    ]
    bad, references = 0, UndisturbedRuns(config)
    for name, n in wanted:
        began = time.monotonic()
        try:
            result = run_fault(config, name, n, references)
        except DrillError as error:
            result = FaultResult(f"FAILED: {error}", -1, "", False)
        bad += not result.equal
        equal = result.skipped or ("yes" if result.equal else "NO")
        rows.append(
            f"| {name} | {n} | {result.what} | {result.code} | {result.resumed} | {equal} |"
        )
        print(f"{rows[-1]}  {time.monotonic() - began:.0f} s", flush=True)
        (Path(config.out) / "table.md").write_text("\n".join([*rows, ""]))
    print("\n" + "\n".join(rows))
    print(f"\n{len(wanted)} faults, {bad} of them left a trace")
    return 1 if bad else 0


class UndisturbedRuns:
    """Undisturbed runs, made when first needed: by number of processes, without and with the NaN."""

    def __init__(self, config: FaultDrill) -> None:
        self.config = config
        self.made: dict[tuple[int, bool], DrillRun] = {}

    def get(self, processes: int, *, nan: bool) -> DrillRun:
        if (processes, nan) not in self.made:
            run = DrillRun(self.config, "undisturbed nan" if nan else "undisturbed", processes)
            code = run.finish(fault=f"nan@3:rank{processes - 1}" if nan else "")
            if code:
                raise UserError(f"the undisturbed run failed with exit code {code}; see {run.log}")
            self.made[processes, nan] = run
        return self.made[processes, nan]


def run_fault(
    config: FaultDrill, name: str, processes: int, references: UndisturbedRuns
) -> FaultResult:
    """Break a run, resume it to the end, compare."""
    fault, _, launcher, codes = FAULTS[name]
    if "disk full" in name and os.geteuid() != 0:
        return FaultResult("not tried: a small tmpfs needs root", 0, "", True, skipped="not tried")
    reference = references.get(processes, nan="nan" in name)
    run = DrillRun(config, name, processes, launcher)
    what, code = fault(run)
    require(code in codes, f"exit code {code}, not {' or '.join(map(str, codes))}; see {run.log}")
    if not (run.folder / "done.json").exists():
        require(run.finish() == 0, f"not resumed; see {run.log}")
    found = re.findall(r"resumed from \S*step_0*(\d+)", run.text())
    equal, other = run.weights(), reference.weights()
    same = equal.keys() == other.keys() and all(
        torch.equal(equal[key], other[key]) for key in equal
    )
    require(run.skipped() == int("nan" in name), f"{run.skipped()} skipped steps counted")
    return FaultResult(what, code, f"step {found[-1]}" if found else "not needed", same)


if __name__ == "__main__":
    command_line.launch(FaultDrill, main)
