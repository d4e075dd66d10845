"""Train arms that differ in a few fields, each with several seeds, and compare them: `python -m tools.study STUDY.yaml data=DIR out=DIR2`.

    STUDY.yaml: base, arms {name: [key=value, ...]}, seeds  ──> OUT/<arm>/seed_<n>/ (train_world_model, evaluate)  ──> OUT/table.md

Runs go one after another, each with the threads of this machine; one that is complete is not done again. The first arm is the reference:
differences are paired, a seed with the same seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cjepa_dist import config as schema
from cjepa_dist.config import MISSING, option
from cjepa_dist.errors import UserError

MEASURES = {
    "one step, colliding": ("one_step", "colliding"),
    "one step, free": ("one_step", "free"),
    "rollout, colliding": ("rollout", "colliding"),
}


@dataclass
class Study:
    """Arms of one comparison, each a world model with some fields changed, over seeds."""

    data: str = option(MISSING, "folder of slot shards with truth")
    out: str = option(MISSING, "folder for the runs and table.md")
    base: str = option(MISSING, "config of train_world_model that all arms share")
    arms: dict[str, list[str]] = option({}, "name of an arm: its key=value, the first arm is the reference")
    seeds: list[int] = option([0, 1, 2], "seeds of each arm")
    windows: int = option(8192, "windows for the error of one step", unit="windows", least=1)


def main(config: Study) -> int:
    if not config.arms or not config.seeds:
        raise UserError("a study needs arms and seeds")
    for settings in config.arms.values():  # a mistake shows before the first run, not after the tenth
        schema.parse(schema.TrainWorldModel, [config.base, *settings, "data=d", "run=r"])
    out = Path(config.out)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in config.seeds:
        for arm, settings in config.arms.items():
            run = out / arm / f"seed_{seed}"
            if not (run / "done.json").exists():
                call("cjepa_dist.train_world_model", config.base, *settings, f"seed={seed}", f"data={config.data}", f"run={run}")
            result = run / "eval" / "world_model_val.json"
            if not result.exists():
                call("cjepa_dist.evaluate", f"run={run}", "split=val", f"windows={config.windows}")
            found.setdefault(arm, []).append(measures(json.loads(result.read_text())))
            (out / "table.md").write_text(table(found, config.seeds))
    print((out / "table.md").read_text())
    return 0


def call(module: str, *arguments: str) -> None:
    """Raises UserError naming the command that failed; its own output stands above."""
    command = [sys.executable, "-m", module, *arguments]
    print(" ".join(["python", *command[1:]]), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"failed: python {' '.join(command[1:])}")


def measures(result: dict) -> dict[str, float]:
    """The predictor's slot errors of `evaluate`'s JSON, by the names in MEASURES."""
    return {name: result[kind]["methods"]["predictor"][group]["mean"]["slot_mse"] for name, (kind, group) in MEASURES.items()}


def table(found: dict[str, list[dict[str, float]]], seeds: list[int]) -> str:
    """Markdown: mean over seeds, and the difference from the first arm in percent: mean, and each seed's."""
    reference = next(iter(found.values()))
    lines = ["| arm | " + " | ".join(f"{name} | difference %, by seed" for name in MEASURES) + " |", "|---|" + "---|---|" * len(MEASURES)]
    for arm, runs in found.items():
        cells = [arm]
        for name in MEASURES:
            cells.append(f"{statistics.fmean(run[name] for run in runs):.4f}")
            change = [100 * (run[name] / base[name] - 1) for run, base in zip(runs, reference)]
            shown = f"{statistics.fmean(change):+.1f} ({', '.join(f'{c:+.1f}' for c in change)})"
            cells.append("" if runs is reference else shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"slot mean squared error on validation; seeds {', '.join(map(str, seeds))}", ""])


if __name__ == "__main__":
    schema.launch(Study, main)
