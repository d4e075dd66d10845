"""A run's weights by the released names: `python -m tools.export_checkpoint run=RUN out=FILE.ckpt`.

    RUN ──load_task──> model ──to_reference──> torch.save({"state_dict": {name: tensor}})

Weights alone: optimizer and statistics stay behind, and so do the sizes that leave no trace in shapes; the line printed names them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING, TrainAloe
from cjepa_dist.data.format.manifest import partial_folder
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.vqa import VqaTask

COMMON_FIELDS = {"slots", "slot_dim", "depth", "heads", "mlp_dim", "dropout"}
RELEASED_FIELDS = {
    "predictor": COMMON_FIELDS | {"history_frames", "pred_frames"},
    "aloe": COMMON_FIELDS | {"frames", "width", "word_dim", "head_dim"},
}  # what may differ in the released layout; any other field makes another model


@dataclass
class ExportCheckpoint:
    """Write a run's newest checkpoint as a released one: {"state_dict": weights by their released names}."""

    run: str = option(MISSING, "run folder of a world model or ALOE")
    out: str = option(MISSING, "file to write; must not exist")


def main(config: ExportCheckpoint) -> int:
    """Write the file. Raises UserError if `out` exists or the run's model is none of the released layout."""
    out = Path(config.out)
    if out.exists():
        raise UserError(f"out={out} exists already: choose another file or remove it")
    task, trained, step = load_task(config.run)
    name, model = (
        ("aloe", task.aloe) if isinstance(task, VqaTask) else ("predictor", task.predictor)
    )
    released = type(model.config)()
    added = [
        f"{name}.{key}={value}"
        for key, value in vars(model.config).items()
        if key not in RELEASED_FIELDS[name] and value != getattr(released, key)
    ]
    if added:
        raise UserError(
            f"{config.run} cannot be exported: the released layout has no {', '.join(added)}"
        )
    state = {key: value.contiguous() for key, value in model.to_reference().items()}
    temporary = partial_folder(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": state}, temporary)
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        raise UserError(f"out={out} cannot be written: {' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)
    if isinstance(trained, TrainAloe):
        sizes = {
            "heads": trained.aloe.heads,
            "frames": trained.aloe.frames,
            "slots": trained.aloe.slots,
            "stride": trained.stride,
        }
    else:
        size = trained.predictor
        sizes = {
            "heads": size.heads,
            "slots": size.slots,
            "history_frames": size.history_frames,
            "frameskip": trained.frameskip,
        }
    unseen = " ".join(f"{key}={value}" for key, value in sizes.items())
    print(
        f"{out}: {len(state)} tensors of {config.run}, step {step}; import_checkpoint cannot read off them: {unseen}"
    )
    return 0


if __name__ == "__main__":
    command_line.launch(ExportCheckpoint, main)
