"""What removing an object changes for the others: `cjepa evaluate-removal run=RUN data=DIR`.

Takes each object out in each way (hidden, emptied, swapped, attention closed) and measures how the
predictions and errors of the others move, apart for pairs that touch, near misses and others.
Writes RUN/eval/removal_<split>.json (into `out` if set), and prints the table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from cjepa_dist.checkpoint.run import load_run
from cjepa_dist.config.command_line import launch
from cjepa_dist.config.fields import MAX_SEED, option
from cjepa_dist.config.plugins import PLUGINS_MEANING
from cjepa_dist.config.schema import INTERVENTIONS
from cjepa_dist.data.format.fingerprint import dataset_fingerprint
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.data.window_spec import WindowSpec
from cjepa_dist.data.windows import InMemoryWindows
from cjepa_dist.errors import UserError, without_secrets
from cjepa_dist.evaluation.removal import evaluate_removal, removal_table
from cjepa_dist.runtime.device import default_device
from cjepa_dist.runtime.files import write_json
from cjepa_dist.tasks.world_model import WorldModelTask


@dataclass
class EvaluateRemoval:
    """What taking out an object does to the predictions of the others, by true class of pair."""

    run: str = option(MISSING, "run directory of a world model", path=True)
    data: str = option(MISSING, "folder of slot shards with ground truth", path=True)
    out: str = option("", "folder for the result; empty = RUN/eval", path=True)
    plugins: list[str] = option([], PLUGINS_MEANING)
    split: str = option("val", "split to evaluate on")
    videos: int = option(0, "number of videos, from the first on; 0 = all", unit="videos", least=0)
    seed: int = option(0, "seed of the drawn windows and of the bootstrap", least=0, most=MAX_SEED)
    windows: int = option(2048, "maximum number of windows", unit="windows", least=2)
    batch_size: int = option(128, "windows per batch", unit="windows", least=2)
    contact_share: float = option(
        0.5,
        "wanted fraction of windows with a contact in the predicted interval",
        least=0.0,
        most=1.0,
    )
    margin: float = option(
        0.02, "growth of an error that invariance allows", unit="residual variances", least=0.0
    )
    interventions: list[str] = option(
        list(INTERVENTIONS), f"how an object is taken out: {', '.join(INTERVENTIONS)}"
    )
    bootstrap_draws: int = option(200, "bootstrap draws over videos", least=1)


def main(config: EvaluateRemoval) -> None:
    """Measure, write and print. Raises UserError where run and data do not fit."""
    if unknown := [how for how in config.interventions if how not in INTERVENTIONS]:
        raise UserError(f"interventions: {unknown[0]!r} is none of {', '.join(INTERVENTIONS)}")
    task, _, step, model = load_run(config.run)  # it also imports the plugins of the run
    if not isinstance(task, WorldModelTask):
        raise UserError(
            f"run {config.run} holds no world model; evaluate-removal takes runs of"
            " train-world-model"
        )
    size = task.config.predictor
    manifest = Manifest.load(config.data)
    manifest.check_slots(size.slots, size.slot_dim, config.data, f"run {config.run}")
    if "empty" in config.interventions and manifest.empty_slot is None:
        raise UserError(
            f"{config.data} does not say what its empty slot is: set interventions=[hide,swap]"
        )
    spec = WindowSpec(
        history_frames=size.history_frames,
        pred_frames=size.pred_frames,
        frameskip=task.config.frameskip,
    )
    dataset = InMemoryWindows(
        config.data,
        config.split,
        spec,
        contact_share=config.contact_share,
        videos=config.videos,
        truth=True,
    )
    device = default_device()
    task.to(device).eval()
    context = dataclasses.replace(
        task.graph_context(torch.zeros(1, dtype=torch.int64, device=device), step), seed=config.seed
    )
    result = evaluate_removal(
        task.predictor,
        dataset,
        context,
        interventions=config.interventions,
        margin=config.margin,
        windows=config.windows,
        batch_size=config.batch_size,
        draws=config.bootstrap_draws,
    )
    folder = Path(config.out) if config.out else Path(config.run) / "eval"
    path = folder / f"removal_{config.split}.json"
    data = dataset_fingerprint(manifest, [config.split])
    result |= {
        "run": config.run,
        "data": without_secrets(config.data, ""),
        "split": config.split,
        "step": step,
    }
    result["fingerprint"] = {"model": model, "data": data}
    write_json(path, result)
    print(removal_table(result) + f"\n\nwrote {path}")


if __name__ == "__main__":
    launch(EvaluateRemoval, main)
