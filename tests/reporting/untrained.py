"""Run directories of tasks that were never trained, saved as the loop would."""

from pathlib import Path

import torch

from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import merge
from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.tasks.build import build_task
from tests.evaluation.world import DIM, SLOTS

PREDICTOR = {"slots": SLOTS, "slot_dim": DIM, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
ALOE = {
    "slots": SLOTS,
    "slot_dim": DIM,
    "frames": 4,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "head_dim": 8,
}


def save_run(config: TrainConfig, done: bool = True) -> Path:
    """Write the run directory that the config names, with a checkpoint of step 7."""
    run = Path(config.run)
    run.mkdir(parents=True)
    merge.save_yaml(config, run / "config.yaml")
    torch.manual_seed(config.seed)
    task = build_task(config)
    CheckpointWriter(run / "checkpoints", keep=1).save(
        task, [torch.optim.AdamW(task.parameters())], step=7, meta={}
    )
    if done:
        (run / "done.json").write_text('{"step": 7}')
    return run
