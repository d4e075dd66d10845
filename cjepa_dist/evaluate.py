"""Evaluate a trained run: `python -m cjepa_dist.evaluate run=RUN split=val [key=value ...]`.

    a world model ──> RUN/eval/world_model_<split>.json
    an ALOE run   ──> RUN/eval/vqa_<split>.json
                      RUN/eval/submission_<split>.json   for the CLEVRER evaluation server

An ALOE trained on one rollout can answer from any other: `data=ROLLOUT out=DIR`. One ALOE, trained
once on the simulator's own worlds (`cjepa_dist.rollout mode=truth`), therefore compares world
models without the noise between trainings of ALOE.

Results are computed anew and replace older files. They record the step of the checkpoint, the data,
the settings, and the fingerprints of model and data, by which the report knows stale results.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.run import LoadedRun, load_run
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.schema import MISSING, TrainAloe, TrainWorldModel
from cjepa_dist.data.format.fingerprint import dataset_fingerprint
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.questions import InMemoryQuestions
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.evaluation.vqa.baselines import baseline_accuracy, read_answered_questions
from cjepa_dist.evaluation.vqa.inference import predict_answers
from cjepa_dist.evaluation.vqa.metrics import compute_accuracy
from cjepa_dist.evaluation.vqa.submission import build_submission
from cjepa_dist.evaluation.world_model import evaluate_world_model
from cjepa_dist.reporting.terminal import print_table, vqa_table, world_model_table
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json
from cjepa_dist.runtime.progress import Progress
from cjepa_dist.training.run_data import check_evaluated_split


@dataclass
class Evaluate:
    """Evaluate a trained world model or ALOE run on a split."""

    run: str = option(MISSING, "run directory of train_world_model or train_aloe", path=True)
    split: str = option("val", "split to evaluate on")
    data: str = option("", "folder of slot shards; empty = the run's own", path=True)
    out: str = option(
        "", "folder for the results; empty = RUN/eval, which the report reads", path=True
    )
    own_slot: str = option(
        "",
        "world model: run of the control that sees only the object's own slot; empty = without it",
        path=True,
    )
    windows: int = option(
        8192, "world model: windows for the error of one step", unit="windows", least=1
    )
    videos: int = option(
        200, "world model: videos for the error of rollouts; 0 = all", unit="videos", least=0
    )
    starts: str = option(
        "all", "ALOE: first sampled frames to evaluate at", choices=("all", "main")
    )
    batch_size: int = option(64, "ALOE: questions per batch", unit="questions", least=1)
    bootstrap_draws: int = option(1000, "bootstrap draws over videos", least=2)
    seed: int = option(0, "seed of the drawn windows and of the bootstrap", least=0, most=MAX_SEED)


def main(config: Evaluate) -> int:
    began = time.time()
    task, trained, step, model = load_run(config.run)
    if not config.data:
        check_evaluated_split(Path(config.run), trained, config.split)
    data = dataset_fingerprint(Manifest.load(config.data or trained.data), [config.split])
    task.to(default_device())
    settings = {
        "run": config.run,
        "step": step,
        "train_seed": trained.seed,
        "data": without_secrets(config.data or trained.data, ""),
        "split": config.split,
        "seed": config.seed,
        "bootstrap_draws": config.bootstrap_draws,
        "fingerprint": {"model": model, "data": data},
    }
    if isinstance(trained, TrainWorldModel):
        result = {"kind": "world_model", **settings, **measure_world_model(config, task, trained)}
        files: dict[str, Any] = {f"world_model_{config.split}.json": result}
        table = world_model_table(result)
    else:
        accuracy, submission = measure_aloe(config, task, trained)
        result = {"kind": "vqa", **settings, **accuracy}
        files = {
            f"vqa_{config.split}.json": result,
            f"submission_{config.split}.json": submission,
        }
        table = vqa_table(result)
    result["seconds"] = round(time.time() - began, 1)
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    for name, content in files.items():
        write_json(folder / name, content)
    written = ", ".join(str(folder / name) for name in files)
    print_table(table, f"step {step}, {result['seconds']} s; wrote {written}")
    return 0


def measure_world_model(config: Evaluate, task: Any, trained: TrainWorldModel) -> dict[str, Any]:
    """Errors of one step and of rollouts."""
    control = load_own_slot(config.own_slot) if config.own_slot else None
    own_slot: Any = control and control.task.to(default_device())
    errors = evaluate_world_model(
        task.predictor,
        trained,
        config.data or trained.data,
        config.split,
        windows=config.windows,
        videos=config.videos,
        own_slot=own_slot and own_slot.predictor,
        draws=config.bootstrap_draws,
        seed=config.seed,
    )
    about = {
        "own_slot": config.own_slot or None,
        "own_slot_step": control and control.step,
        "own_slot_fingerprint": control and control.fingerprint,
    }
    return {**about, **errors}


def load_own_slot(run: str) -> LoadedRun:
    """The control. UserError if its predictor sees more than one slot."""
    loaded = load_run(run)
    trained = loaded.config
    if not isinstance(trained, TrainWorldModel) or not trained.predictor.own_slot_only:
        raise UserError(
            f"own_slot={run} is not a world model trained with predictor.own_slot_only=true"
        )
    return loaded


def measure_aloe(
    config: Evaluate, task: Any, trained: TrainAloe
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracies at the run's eval_start and over all starts, baselines, and the submission.

    The shards of the split are read once: everything below works on the same questions.
    """
    every_start = range(trained.starts) if config.starts == "all" else ()
    starts = sorted({trained.eval_start, *every_start})
    # Built for the last start: frames past the end of the videos are an error before inference.
    dataset = InMemoryQuestions(
        config.data or trained.data,
        config.split,
        frames=trained.aloe.frames,
        stride=trained.stride,
        eval_start=starts[-1],
        protocol=trained.protocol,
        blind=trained.blind,
        seed=trained.seed,
    )
    predictions, progress = {}, Progress(len(dataset) * len(starts), "questions")
    for start in starts:
        dataset.sampling.eval_start = start
        predictions[start] = predict_answers(
            task.aloe,
            dataset,
            batch_size=config.batch_size,
            progress=lambda count: progress.add(count=count),
        )
    result = compute_accuracy(
        predictions, trained.eval_start, draws=config.bootstrap_draws, seed=config.seed
    )
    answers = predictions[trained.eval_start]
    train = read_answered_questions(trained.data, trained.train_split)
    result |= {"protocol": trained.protocol, "blind": trained.blind}
    result["baselines"] = baseline_accuracy(train, answers)
    return result, build_submission(answers)


if __name__ == "__main__":
    command_line.launch(Evaluate, main)
