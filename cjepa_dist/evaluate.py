"""Measure a trained run: `python -m cjepa_dist.evaluate run=RUN split=val [key=value ...]`.

    a world model  ──> RUN/eval/world_model_<split>.json
    an ALOE run    ──> RUN/eval/vqa_<split>.json, RUN/eval/submission_<split>.json (as the CLEVRER server takes it)

An ALOE trained on one rollout reads any other: `data=ROLLOUT out=DIR`. So one reader, trained once on the simulator's own worlds
(`cjepa_dist.rollout mode=truth`), compares world models without the noise between trainings.

Each file is measured anew and replaced whole; it records the step of the checkpoint, the data and the settings.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from cjepa_dist.checkpoint.loading import load_task
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING, TrainAloe, TrainWorldModel
from cjepa_dist.data.questions import InMemoryQuestions
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import submission, vqa, vqa_metrics
from cjepa_dist.evaluation.world_model import evaluate_world_model
from cjepa_dist.reporting.terminal import vqa_table
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json


@dataclass
class Evaluate:
    """Measure a trained world model or ALOE run on a split."""

    run: str = option(MISSING, "run folder of train_world_model or train_aloe")
    split: str = option("val", "split to measure on")
    data: str = option("", "folder of slot shards; empty = the run's own")
    out: str = option("", "folder for the files; empty = RUN/eval, which the report reads")
    own_slot: str = option(
        "",
        "world model: run of the control that sees only the object's own slot; empty = without it",
    )
    windows: int = option(
        8192, "world model: windows for the error of one step", unit="windows", least=1
    )
    videos: int = option(
        200, "world model: videos for the error of rollouts; 0 = all", unit="videos", least=0
    )
    starts: str = option("all", "ALOE: first sampled frames to measure at", choices=("all", "main"))
    batch: int = option(64, "ALOE: questions at once", unit="questions", least=1)
    draws: int = option(1000, "draws of the bootstrap over videos", least=2)
    seed: int = option(0, "seed of the windows drawn and of the bootstrap")


def main(config: Evaluate) -> int:
    began = time.time()
    task, trained, step = load_task(config.run)
    task.to(default_device())
    data = config.data or trained.data
    head = {
        "run": config.run,
        "step": step,
        "train_seed": trained.seed,
        "data": data,
        "split": config.split,
    }
    head |= {"seed": config.seed, "draws": config.draws}
    files: dict[str, Any]
    if isinstance(trained, TrainWorldModel):
        own = load_own_slot(config.own_slot) if config.own_slot else None
        result = {
            "kind": "world_model",
            **head,
            "own_slot": config.own_slot or None,
            "own_slot_step": own[1] if own else None,
        }
        result |= evaluate_world_model(
            task.predictor, trained, data, config.split,  # type: ignore[arg-type, union-attr]
            windows=config.windows, videos=config.videos, own_slot=own[0] if own else None, draws=config.draws, seed=config.seed,
        )  # fmt: skip
        files, table = {f"world_model_{config.split}.json": result}, world_model_table(result)
    else:
        result, answers = measure_aloe(config, task, trained, data)
        result = {
            "kind": "vqa",
            **head,
            "protocol": trained.protocol,
            "blind": trained.blind,
            **result,
        }
        files, table = (
            {f"vqa_{config.split}.json": result, f"submission_{config.split}.json": answers},
            vqa_table(result),
        )
    result["seconds"] = round(time.time() - began, 1)
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    for name, content in files.items():
        write_json(folder / name, content)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"step {step}, {result['seconds']} s; wrote {', '.join(str(folder / name) for name in files)}",
        highlight=False,
    )
    return 0


def load_own_slot(run: str) -> tuple[Any, int]:
    """The control's predictor and its step. UserError if the run is not one that sees only its own slot."""
    task, trained, step = load_task(run)
    if not isinstance(trained, TrainWorldModel) or not trained.predictor.own_slot_only:
        raise UserError(
            f"own_slot={run} is not a world model trained with predictor.own_slot_only=true"
        )
    return task.predictor.to(default_device()), step  # type: ignore[union-attr]


def measure_aloe(
    config: Evaluate, task: Any, trained: TrainAloe, data: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracies at the run's eval_start (and all starts), what one gets without looking, and the submission."""
    starts = sorted(
        {trained.eval_start, *(range(trained.starts) if config.starts == "all" else ())}
    )
    # Made at the last start, so that frames past the end of the video are refused at once; the slots are read once for all starts.
    source = InMemoryQuestions(
        data, config.split, frames=trained.aloe.frames, stride=trained.stride, eval_start=starts[-1],
        protocol=trained.protocol, blind=trained.blind, seed=trained.seed,
    )  # fmt: skip
    by_start = {}
    for start in starts:
        source.shown.eval_start = start
        by_start[start] = vqa.answer(task.aloe, source, batch=config.batch)
    result = vqa_metrics.evaluate_vqa(
        by_start, trained.eval_start, draws=config.draws, seed=config.seed
    )
    verdicts = by_start[trained.eval_start]
    left_out = {(v.scene, v.question["question_id"]) for v in verdicts if v.left_out}
    train, scored = (
        vqa.read_questions(trained.data, trained.train_split),
        vqa.read_questions(data, config.split),
    )
    result["without_looking"] = vqa_metrics.majority(
        train, [(s, q) for s, q in scored if (s, q["question_id"]) not in left_out]
    )
    return result, submission.submission(verdicts)


def world_model_table(result: dict[str, Any]) -> RichTable:
    one, rolled = result["one_step"]["methods"], (result["rollout"] or {}).get("methods")
    classes = list(next(iter(one.values())))
    table = RichTable(title=f"World model, {result['split']}: slot MSE (position RMSE)")
    table.add_column("method")
    for name in classes:
        table.add_column(f"one step, {name.replace('_', ' ')}")
    for name in ("colliding", "free") if rolled else ():
        table.add_column(f"32 frames, {name}")
    for method, cells in one.items():
        row = [shown(cells[name]["mean"]) for name in classes]
        row += (
            [shown(rolled[method][name]["mean"]) for name in ("colliding", "free")]
            if rolled
            else []
        )
        table.add_row(method, *row)
    return table


def shown(cell: dict[str, Any]) -> str:
    if cell["slot_mse"] is None:
        return "-"
    return f"{cell['slot_mse']:.4f}" + (
        f" ({cell['position_rmse']:.3f})" if cell["position_rmse"] is not None else ""
    )


if __name__ == "__main__":
    command_line.launch(Evaluate, main)
