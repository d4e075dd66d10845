"""Compare ways of training: `cjepa compare reference=RUNS/world_model/baseline arms=[...]`.

    ARM/seed_0, seed_1, ... ──eval/*.json: sums of each video──> pairs, same seed of REFERENCE
        ──evaluation/paired.py──> difference, interval over seeds and videos, what may be said

Reads what `cjepa evaluate`, `evaluate-symbolic` have written, and runs no model. The margins of "no
difference" are arguments: give them before you look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.errors import UserError
from cjepa_dist.reporting.paired_runs import (
    MEASURES,
    compare_arms,
    comparison_table,
    runs_of_arm,
)
from cjepa_dist.runtime.files import write_json


@dataclass
class Compare:
    """Is an arm better than its reference, worse, or no different, over seeds and videos?"""

    reference: str = option(
        MISSING, "folder of the runs seed_0, seed_1, ... of one arm, or one run", path=True
    )
    arms: list[str] = option(MISSING, "the same of the arms that are compared with it")
    split: str = option("val", "split that was evaluated")
    measures: list[str] = option(
        [],
        f"what is compared, of {', '.join(MEASURES)}; empty = what all runs have been measured on",
    )
    error_margin: float = option(
        3.0, "difference of errors that counts as none", unit="percent", least=0.0
    )
    accuracy_margin: float = option(
        1.0, "difference of accuracies that counts as none", unit="points", least=0.0
    )
    bootstrap_draws: int = option(10_000, "bootstrap draws over seeds and videos", least=100)
    seed: int = option(0, "seed of the bootstrap", least=0, most=MAX_SEED)
    out: str = option("", "JSON file for the result; empty = only print it", path=True)


def main(config: Compare) -> None:
    """Compare and print. Raises UserError where runs cannot be paired or were not evaluated."""
    if not config.arms:
        raise UserError("config field arms: name at least one arm")
    if unknown := [name for name in config.measures if name not in MEASURES]:
        raise UserError(f"measures: {unknown[0]!r} is none of {', '.join(MEASURES)}")
    rows = compare_arms(
        {config.reference: runs_of_arm(Path(config.reference))},
        {arm: runs_of_arm(Path(arm)) for arm in config.arms},
        config.split,
        measures=config.measures,
        margins=(config.error_margin, config.accuracy_margin),
        draws=config.bootstrap_draws,
        seed=config.seed,
    )
    if not rows:
        raise UserError(
            f"no run was evaluated on split {config.split} in a way that can be compared: run"
            " cjepa evaluate (and evaluate-symbolic) for all of them"
        )
    if config.out:
        write_json(Path(config.out), {"reference": config.reference, "rows": rows})
    print("\n".join(comparison_table(config.reference, rows)))


if __name__ == "__main__":
    launch(Compare, main)
