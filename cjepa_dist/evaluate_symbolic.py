"""Answer questions by programs: `python -m cjepa_dist.evaluate_symbolic data=ROLLOUT split=val`.

    ROLLOUT (cjepa_dist.rollout mode=counterfactual) ──EventDecoder──> events ──programs──> answers
        ──> OUT/symbolic_<rollout>_<split>.json, submission_symbolic_<rollout>_<split>.json

<rollout> is how the rollout was made. OUT is ROLLOUT.eval by default: no folder that only a
manifest names is written into. `cjepa report` looks in eval/ of the world model: out=RUN/eval. The
event decoder is fitted on observed frames of the train split of `probe_data`: on no rollout, and on
no label of the split that is evaluated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cjepa_dist.checkpoint.run import newest_fingerprint
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.data.format.fingerprint import (
    Fingerprint,
    dataset_fingerprint,
    differences,
)
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.data.format.storage import FILE_NAME, is_remote
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.evaluation.event_decoder import fit_event_decoder
from cjepa_dist.evaluation.symbolic import answer_questions
from cjepa_dist.evaluation.vqa.baselines import baseline_accuracy, read_answered_questions
from cjepa_dist.evaluation.vqa.metrics import compute_accuracy
from cjepa_dist.evaluation.vqa.submission import build_submission
from cjepa_dist.reporting.terminal import print_table, vqa_table
from cjepa_dist.runtime.device import keep_freed_memory
from cjepa_dist.runtime.files import write_json


@dataclass
class EvaluateSymbolic:
    """Accuracy of question programs that run on events decoded from rolled-out slots."""

    data: str = option(MISSING, "folder of rolled-out slot shards with worlds.npz", path=True)
    split: str = option("val", "split to answer")
    videos: int = option(0, "number of videos, from the first on; 0 = all", unit="videos", least=0)
    probe_data: str = option(
        "",
        "folder to fit the event decoder on; empty = the one that was rolled out",
        path=True,
    )
    probe_split: str = option("train", "split to fit the event decoder on")
    probe_videos: int = option(400, "number of its videos", unit="videos", least=1)
    out: str = option(
        "",
        "folder for the results, such as RUN/eval of the world model, where `cjepa report` looks;"
        " empty = DATA.eval",
        path=True,
    )
    bootstrap_draws: int = option(1000, "bootstrap draws over videos", least=2)
    seed: int = option(
        0, "seed of the probe's features and of the bootstrap", least=0, most=MAX_SEED
    )


def main(config: EvaluateSymbolic) -> int:
    began = time.time()
    keep_freed_memory()  # every video has megabytes of worlds
    torch.set_num_threads(1)  # slots of one video at a time are too few for several threads
    manifest = Manifest.load(config.data)
    source = manifest.source
    observed = config.probe_data or source.get("data", config.data)
    model = source.get("fingerprint", {}).get("world_model")
    folder = results_folder(config)
    if (folder.parent / "config.yaml").is_file():  # a run directory
        check_model_is_there(folder.parent, model, config.data)
    decoder = fit_event_decoder(
        observed, config.probe_split, videos=config.probe_videos, seed=config.seed
    )
    count = min(config.videos, manifest.count(config.split))
    fields = ("scene_index", "object_property")
    samples = read_split(config.data, config.split, videos=count, annotation_fields=fields)
    predictions, programs = answer_questions(decoder, samples)
    accuracy = compute_accuracy({0: predictions}, 0, draws=config.bootstrap_draws, seed=config.seed)
    accuracy["starts"]["groups"] = {}  # no frames are sampled, so there is nothing to average over
    train = read_answered_questions(observed, config.probe_split)
    result: dict[str, Any] = {
        "kind": "symbolic",
        "run": source.get("world_model"),
        "step": source.get("step"),
        "data": without_secrets(config.data, ""),
        "split": config.split,
        "protocol": "symbolic",
        "rollout": rollout_name(source),
        "seed": config.seed,
        "bootstrap_draws": config.bootstrap_draws,
        "fingerprint": {
            "model": model,
            "data": dataset_fingerprint(manifest, [config.split]),
        },
        "programs": programs,
        "event_decoder": {
            "data": without_secrets(observed, ""),
            "split": config.probe_split,
            "videos": config.probe_videos,
            "probe_rmse": decoder.probe.rmse,
            "contact_distance": decoder.contact_distance,
            "min_velocity_change": decoder.min_velocity_change,
            "f1": decoder.f1,
            "precision": decoder.precision,
            "recall": decoder.recall,
        },
        **accuracy,
        "baselines": baseline_accuracy(train, predictions),
        "seconds": round(time.time() - began, 1),
    }
    name = f"symbolic_{rollout_name(source)}_{config.split}.json"
    write_json(folder / name, result)
    write_json(folder / f"submission_{name}", build_submission(predictions))
    failed = ", ".join(f"{kind} {p['failed']} of {p['programs']}" for kind, p in programs.items())
    print_table(
        vqa_table(result),
        f"collisions on train: F1 {decoder.f1:.3f}; programs that failed: {failed}",
        f"{result['seconds']} s; wrote {folder / name}",
    )
    return 0


def results_folder(config: EvaluateSymbolic) -> Path:
    """Where the results go. Raises UserError for data at a URL, beside which nothing is written."""
    if config.out:
        return Path(config.out)
    if is_remote(config.data):
        raise UserError(f"{config.data} is a URL: set out= to a folder for the results")
    folder = Path(config.data).absolute()
    return folder.with_name(folder.name + ".eval")


def check_model_is_there(run: Path, model: Fingerprint | None, data: str) -> None:
    """Raises UserError where a run has another model now than the one that made a rollout."""
    now = newest_fingerprint(run)
    before = model and {name: model[name] for name in ("weights", "config")}
    if now and before and (found := differences(before, now)):
        raise UserError(
            f"{data} was rolled out by another model than {run} holds now: they differ in"
            f" {', '.join(found)}; roll out again with redo=true, or set out= for the results"
        )


def rollout_name(source: dict[str, Any]) -> str:
    """How a rollout was made: future, truth, free, factual, or the divergence rule.

    Raises UserError for a manifest that says something which names no file of ours.
    """
    mode = str(source.get("mode", "future" if source.get("kind") == "rollout" else "observed"))
    name = str(source.get("divergence", "counterfactual")) if mode == "counterfactual" else mode
    if not FILE_NAME.fullmatch(name):
        raise UserError(f"the manifest of the rollout says {name!r:.80} for how it was made")
    return name


if __name__ == "__main__":
    command_line.launch(EvaluateSymbolic, main)
