"""How the numbers of a report were made: seeds, lengths, checkpoints, and the commands."""

from __future__ import annotations

import shlex
import time

from cjepa_dist.config.schema import TrainAloe
from cjepa_dist.reporting.runs import EvaluatedRun
from cjepa_dist.reporting.tables import header, row


def provenance_section(runs: list[EvaluatedRun], arguments: str, split: str) -> list[str]:
    """What it takes to make these numbers again; `arguments` are the `runs=` of the report."""
    command = f"python -m cjepa_dist.report runs={shlex.quote(arguments)} split={split}"
    lines = [
        "## How these numbers were made\n",
        f"{time.strftime('%Y-%m-%d %H:%M')}, `{command}`\n",
        *header("run", "seed", "length", "videos", "evaluated checkpoint"),
    ]
    commands = []
    for run in runs:
        loop = run.config.loop
        length = f"{loop.steps}" if loop.steps else f"{loop.epochs:g} epochs"
        steps = {str(result["step"]) for result in run.results.values() if "step" in result}
        lines.append(
            row(
                run.path,
                run.config.seed,
                f"{length}, batch {loop.global_batch_size}",
                run.data_size,
                f"step {', '.join(sorted(steps) or ['-'])}",
            )
        )
        module = "train_aloe" if isinstance(run.config, TrainAloe) else "train_world_model"
        config = shlex.quote(str(run.path / "config.yaml"))
        commands.append(f"accelerate launch -m cjepa_dist.{module} {config}")
        commands += [f"python -m cjepa_dist.{line}" for line in evaluation_commands(run, split)]
    return [*lines, "\n```", *commands, "```\n"]


def evaluation_commands(run: EvaluatedRun, split: str) -> list[str]:
    path = shlex.quote(str(run.path))
    evaluate = f"evaluate run={path} split={split}"
    if isinstance(run.config, TrainAloe):
        return [evaluate]
    if own_slot := run.results.get("world_model", {}).get("own_slot"):
        evaluate += f" own_slot={shlex.quote(own_slot)}"
    data = shlex.quote(run.config.data)
    return [evaluate, f"evaluate_graph run={path} data={data} split={split}"]
