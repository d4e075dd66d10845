"""Reads damaged and hostile inputs by the thousand: `python -m tools.fuzz reader=all cases=1000`.

    valid input ──mutation of (seed, reader, case)──> reader ──> a result, or one line for the user

Anything else is a finding: another exception, a line that does not name the file, more time or
memory than a case may take, a changed input. It is printed with the arguments that reproduce it.
Each reader runs in a process of its own, so that one that dies is a finding too.
"""

from __future__ import annotations

from dataclasses import dataclass

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.errors import UserError
from tools.fuzz.cases import MOST_MEMORY, MOST_SECONDS, Tally
from tools.fuzz.processes import run_reader
from tools.fuzz.readers import READERS


@dataclass
class Fuzz:
    """Read damaged and hostile inputs; print what comes, by reader. Exit code 1 for a finding."""

    reader: str = option("all", f"one of {', '.join(READERS)}; or all of them")
    cases: int = option(1000, "cases of each reader", least=1)
    first: int = option(0, "number of the first case", least=0)
    seed: int = option(0, "seed of the cases", least=0, most=MAX_SEED)


def main(config: Fuzz) -> int:
    """Run the cases and print a table. Returns 1 if there is a finding."""
    names = list(READERS) if config.reader == "all" else [config.reader]
    if unknown := [name for name in names if name not in READERS]:
        raise UserError(f"reader={unknown[0]}: must be all or one of {', '.join(READERS)}")
    rows, found = [], 0
    for name in names:
        tally = run_reader(name, config.seed, range(config.first, config.first + config.cases))
        for number, text in list(tally.findings.items())[:20]:
            arguments = f"reader={name} seed={config.seed} first={number} cases=1"
            print(f"finding: {arguments}: {text}", flush=True)
        found += len(tally.findings)
        rows.append(table_row(name, config.cases, tally))
        print(rows[-1], flush=True)
    print(
        "\n| reader | cases | results | refusals | findings | slowest, s | memory, MiB |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    )
    print(f"a case may take {MOST_SECONDS:g} s of CPU and {MOST_MEMORY >> 20} MiB")
    return 1 if found else 0


def table_row(name: str, cases: int, tally: Tally) -> str:
    counts = f"{cases:,} | {tally.results:,} | {tally.refusals:,} | {len(tally.findings):,}"
    return f"| {name} | {counts} | {tally.slowest:.2f} | {tally.most_memory >> 20} |"


if __name__ == "__main__":
    launch(Fuzz, main)
