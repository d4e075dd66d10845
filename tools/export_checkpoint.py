"""Write a run's weights by the released names.

    python -m tools.export_checkpoint run=RUN out=FILE.ckpt

    RUN ──load_task──> model ──to_reference──> torch.save({"state_dict": {name: tensor}})

Only weights: the optimizer and statistics are left out, and so are the sizes that cannot be seen in
shapes; the printed line names them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from cjepa_dist.checkpoint.run import load_task
from cjepa_dist.config import command_line
from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING, TrainAloe, TrainConfig
from cjepa_dist.errors import UserError
from cjepa_dist.tasks.vqa import VqaTask

# What may differ in the released layout; any other field makes another model.
COMMON_FIELDS = {"slots", "slot_dim", "depth", "heads", "mlp_dim", "dropout"}
RELEASED_FIELDS = {
    "predictor": COMMON_FIELDS | {"history_frames", "pred_frames"},
    "aloe": COMMON_FIELDS | {"frames", "width", "word_dim", "head_dim"},
}


@dataclass
class ExportCheckpoint:
    """Write a run's newest checkpoint by the released names, as {"state_dict": weights}."""

    run: str = option(MISSING, "run directory of a world model or ALOE", path=True)
    out: str = option(MISSING, "file to write; must not exist", path=True)


def main(config: ExportCheckpoint) -> int:
    """Write the file.

    Raises UserError if `out` exists, or if the run's model does not have the released layout.
    """
    out = Path(config.out)
    if out.exists():
        raise UserError(f"out={out} exists already: choose another file or remove it")
    task, train_config, step = load_task(config.run)
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
    temporary = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": state}, temporary)
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        raise UserError(f"out={out} cannot be written: {' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{out}: {len(state)} tensors of {config.run}, step {step}; import_checkpoint cannot see "
        f"these sizes in them: {describe_unseen(train_config)}"
    )
    return 0


def describe_unseen(config: TrainConfig) -> str:
    """The options that import_checkpoint needs, as key=value."""
    if isinstance(config, TrainAloe):
        aloe, own = config.aloe, f"frames={config.aloe.frames} stride={config.stride}"
        return f"heads={aloe.heads} slots={aloe.slots} {own}"
    model = config.predictor
    own = f"history_frames={model.history_frames} frameskip={config.frameskip}"
    return f"heads={model.heads} slots={model.slots} {own}"


if __name__ == "__main__":
    command_line.launch(ExportCheckpoint, main)
