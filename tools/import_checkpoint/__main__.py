"""Make a run directory from a released checkpoint.

    python -m tools.import_checkpoint source=FILE.ckpt out=RUN [data=DIR] [key=value ...]

    FILE.ckpt ─torch.load(weights_only=True)─> tensors by name ─from_reference─> task ─> RUN
                                       time_pos_embed: C-JEPA     data=DIR ──────┘
                                       q_in_proj.weight: ALOE     (statistics of residuals)

Tensors are found at any depth and under any prefix: a bare state dict, {"state_dict": ...},
"module.", "model.predictor.". RUN is written beside itself and renamed, so it is never incomplete.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cjepa_dist.checkpoint.writer import CheckpointWriter
from cjepa_dist.config import command_line
from cjepa_dist.data.format.manifest import Manifest, partial_folder
from cjepa_dist.errors import UserError
from cjepa_dist.optim.optimizers import build_optimizers
from cjepa_dist.runtime.files import file_checksum, write_json
from cjepa_dist.tasks.world_model import WorldModelTask
from cjepa_dist.training.provenance import describe_environment
from cjepa_dist.training.run_dir import open_run_dir
from tools.import_checkpoint.convert import convert, describe_sizes
from tools.import_checkpoint.released_file import (
    ALOE,
    C_JEPA,
    find_model,
    named_tensors,
    read_file,
)
from tools.import_checkpoint.residuals import add_statistics
from tools.import_checkpoint.schema import ImportCheckpoint

OPTIONS_OF = {C_JEPA: ("history_frames", "pred_frames", "frameskip"), ALOE: ("frames", "stride")}


def main(config: ImportCheckpoint) -> int:
    """Make the run directory.

    Raises UserError if the file is not such a checkpoint, if sizes do not fit it, or if `out`
    exists.
    """
    out, temporary = Path(config.out), partial_folder(config.out)
    if out.exists():
        raise UserError(f"out={out} exists already: choose another run directory or remove it")
    manifest = Manifest.load(config.data) if config.data else None
    tensors = dict(named_tensors(read_file(config.source)))
    kind, prefix, parameters = find_model(tensors, config.source, config.prefix)
    other = ALOE if kind == C_JEPA else C_JEPA
    unused = [f"{name}={value}" for name in OPTIONS_OF[other] if (value := getattr(config, name))]
    if unused:
        raise UserError(f"{config.source} holds {kind}, which has no {', '.join(unused)}")
    task, train_config = convert(kind, config, parameters, manifest)
    if isinstance(task, WorldModelTask):
        statistics = add_statistics(task, config, manifest)
    else:
        statistics = "ALOE has no statistics to measure"
    here: Any = SimpleNamespace(
        device=torch.device("cpu"), distributed_type="NO", num_processes=1, mixed_precision="no"
    )
    environment = describe_environment(here, "none", "fp32")
    environment["imported"] = {
        "file": Path(config.source).name,
        "xxh3": file_checksum(Path(config.source)),
        "prefix": prefix,
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        open_run_dir(temporary, train_config, environment)
        meta = {"position": 0, "processes": 1}
        CheckpointWriter(temporary / "checkpoints", keep=1).save(
            task, build_optimizers(task, train_config.optimizer), step=0, meta=meta
        )
        write_json(temporary / "done.json", {"step": 0})
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    count = sum(p.numel() for p in task.parameters())
    print(
        f"{out}: {kind}, {count:,} parameters from {config.source}"
        + (f" under {prefix}" if prefix else "")
    )
    print(describe_sizes(train_config))
    print(statistics)
    return 0


if __name__ == "__main__":
    command_line.launch(ImportCheckpoint, main)
