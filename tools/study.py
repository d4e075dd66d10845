"""Train arms that differ in a few fields, each with several seeds, and compare them: `python -m tools.study STUDY.yaml data=DIR out=DIR2`.

    STUDY.yaml: base, arms {name: [key=value, ...]}, seeds  ──> OUT/<arm>/seed_<n>/ (train_world_model, evaluate)  ──> OUT/table.md

Runs go one after another, each with the threads of this machine; one that is complete is not done again. The first arm is the reference:
differences are paired, a seed with the same seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist.config import command_line, schema
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation.bootstrap import BOOTSTRAP_DRAWS
from cjepa_dist.reporting import seeds


@dataclass
class Study:
    """Arms of one comparison, each a world model with some fields changed, over seeds."""

    data: str = option(MISSING, "folder of slot shards with truth")
    out: str = option(MISSING, "folder for the runs and table.md")
    base: str = option(MISSING, "config of train_world_model that all arms share")
    arms: dict[str, list[str]] = option(
        {}, "name of an arm: its key=value, the first arm is the reference"
    )
    seeds: list[int] = option([0, 1, 2], "seeds of each arm")
    windows: int = option(8192, "windows for the error of one step", unit="windows", least=1)


def main(config: Study) -> int:
    if not config.arms or not config.seeds:
        raise UserError("a study needs arms and seeds")
    for (
        settings
    ) in config.arms.values():  # a mistake shows before the first run, not after the tenth
        command_line.parse(schema.TrainWorldModel, [config.base, *settings, "data=d", "run=r"])
    out = Path(config.out)
    found: seeds.ResultsByArm = {}
    for seed in config.seeds:
        for arm, settings in config.arms.items():
            run = out / arm / f"seed_{seed}"
            if not (run / "done.json").exists():
                call(
                    "cjepa_dist.train_world_model",
                    config.base,
                    *settings,
                    f"seed={seed}",
                    f"data={config.data}",
                    f"run={run}",
                )
            result = run / "eval" / "world_model_val.json"
            if not result.exists():
                call("cjepa_dist.evaluate", f"run={run}", "split=val", f"windows={config.windows}")
            found.setdefault(arm, {})[run.name] = seeds.predictor_errors(
                json.loads(result.read_text())
            )
            text = "\n".join(
                [
                    *seeds.seed_table(found, percent=True, draws=BOOTSTRAP_DRAWS),
                    "",
                    "slot mean squared error on validation",
                    "",
                ]
            )
            (out / "table.md").write_text(text)
    print((out / "table.md").read_text())
    return 0


def call(module: str, *arguments: str) -> None:
    """Raises UserError naming the command that failed; its own output stands above."""
    command = [sys.executable, "-m", module, *arguments]
    print(" ".join(["python", *command[1:]]), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"failed: python {' '.join(command[1:])}")


if __name__ == "__main__":
    command_line.launch(Study, main)
