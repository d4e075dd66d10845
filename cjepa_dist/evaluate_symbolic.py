"""Answer questions by their programs on a rollout: `python -m cjepa_dist.evaluate_symbolic data=ROLLED split=val`.

    ROLLED (cjepa_dist.rollout mode=counterfactual) ──events off slots──> answers ──> RUN/eval/symbolic_<what>_<split>.json

RUN is the world model that made the rollout, <what> how it was made. The reader's probe and its rule of contact come from the observed
train frames of `probe_data`: from no rollout, and from no label of the split that is measured.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.format.reader import read_split
from cjepa_dist.errors import UserError
from cjepa_dist.evaluation import submission, symbolic, vqa, vqa_metrics
from cjepa_dist.evaluation.event_decoder import fit_event_decoder
from cjepa_dist.reporting.terminal import vqa_table
from cjepa_dist.runtime.files import write_json


@dataclass
class EvaluateSymbolic:
    """Accuracy of question programs run on events that are read off rolled-out slots."""

    data: str = option(MISSING, "folder of rolled-out slot shards with worlds.npz")
    split: str = option("val", "split to answer")
    videos: int = option(0, "first so many videos of it; 0 = all", unit="videos", least=0)
    probe_data: str = option(
        "", "folder whose train split teaches the reader; empty = the one that was rolled out"
    )
    probe_split: str = option("train", "its split for that")
    probe_videos: int = option(400, "first so many videos of it", unit="videos", least=1)
    out: str = option(
        "", "folder for the result; empty = eval/ of the world model that made the rollout"
    )
    draws: int = option(1000, "draws of the bootstrap over videos", least=2)
    seed: int = option(0, "seed of the probe's features and of the bootstrap")


def main(config: EvaluateSymbolic) -> int:
    began = time.time()
    torch.set_num_threads(1)  # one video's slots at a time: threads would wait for each other
    source = Manifest.load(config.data).source
    observed = config.probe_data or source.get("data", config.data)
    folder = Path(config.out) if config.out else model_of(source, config.data) / "eval"
    reader = fit_event_decoder(
        observed, config.probe_split, videos=config.probe_videos, seed=config.seed
    )
    samples = read_split(
        config.data,
        config.split,
        videos=min(config.videos, Manifest.load(config.data).count(config.split)),
    )
    verdicts, programs = symbolic.answer(reader, samples)
    result: dict[str, Any] = {
        "kind": "symbolic",
        "run": source.get("world_model"),
        "step": source.get("step"),
        "data": config.data,
    }
    result |= {
        "split": config.split,
        "protocol": "symbolic",
        "rollout": name_of(source),
        "seed": config.seed,
        "draws": config.draws,
        "programs": programs,
    }
    result["reader"] = {
        "data": observed, "split": config.probe_split, "videos": config.probe_videos, "probe_rmse": reader.probe.rmse,
        "reach": reader.reach, "jolt": reader.jolt, "f1": reader.f1, "precision": reader.precision, "recall": reader.recall,
    }  # fmt: skip
    result |= vqa_metrics.evaluate_vqa({0: verdicts}, 0, draws=config.draws, seed=config.seed)
    result["starts"]["groups"] = {}  # nothing is sampled, so there are no starts to spread over
    train, scored = (
        vqa.read_questions(observed, config.probe_split),
        [(v.scene, v.question) for v in verdicts if v.answerable()],
    )
    result["without_looking"] = vqa_metrics.majority(train, scored)
    result["seconds"] = round(time.time() - began, 1)
    path = folder / f"symbolic_{name_of(source)}_{config.split}.json"
    write_json(path, result)
    write_json(
        folder / f"submission_symbolic_{name_of(source)}_{config.split}.json",
        submission.submission(verdicts),
    )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(vqa_table(result))
    lost = ", ".join(f"{kind} {p['failed']} of {p['programs']}" for kind, p in programs.items())
    console.print(
        f"collisions on train: F1 {reader.f1:.3f}; programs that did not run: {lost}",
        highlight=False,
    )
    console.print(f"{result['seconds']} s; wrote {path}", highlight=False)
    return 0


def model_of(source: dict[str, Any], data: str) -> Path:
    """The run folder of the world model behind a rollout. Raises UserError where there is none."""
    if not source.get("world_model"):
        raise UserError(f"{data} was not made by a world model: say where the result goes, out=...")
    return Path(source["world_model"])


def name_of(source: dict[str, Any]) -> str:
    """How a rollout was made, in a word: future, truth, free, factual, or what said who had diverged."""
    mode = str(source.get("mode", "future" if source.get("kind") == "rollout" else "observed"))
    return str(source.get("divergence", "counterfactual")) if mode == "counterfactual" else mode


if __name__ == "__main__":
    command_line.launch(EvaluateSymbolic, main)
