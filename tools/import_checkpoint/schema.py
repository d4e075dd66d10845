"""Options of `python -m tools.import_checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

from cjepa_dist.config.fields import option
from cjepa_dist.config.schema import MISSING


@dataclass
class ImportCheckpoint:
    """Make a run directory from a released C-JEPA or ALOE checkpoint.

    The file does not hold all sizes of the model. Those are options; 0 = the published size.
    """

    source: str = option(
        MISSING, "torch.save file with the weights by their released names", path=True
    )
    out: str = option(MISSING, "run directory to make; must not exist", path=True)
    data: str = option(
        "",
        "slot shards for the run; C-JEPA: measures the statistics that evaluate_graph needs",
        path=True,
    )
    split: str = option("train", "C-JEPA: split to measure on")
    windows: int = option(2048, "C-JEPA: windows to measure on", unit="windows", least=1)
    prefix: str = option(
        "",
        "prefix of the model's names if the file holds several, '.' = none; empty = the only model",
    )
    heads: int = option(0, "attention heads", least=0)
    slots: int = option(
        0, "object slots a frame; 0 = as in data, or else published", unit="slots", least=0
    )
    history_frames: int = option(0, "C-JEPA: observed frames", unit="frames", least=0)
    pred_frames: int = option(0, "C-JEPA: predicted frames", unit="frames", least=0)
    frameskip: int = option(0, "C-JEPA: video frames between model frames", unit="frames", least=0)
    frames: int = option(0, "ALOE: frames sampled from a video", unit="frames", least=0)
    stride: int = option(0, "ALOE: video frames between sampled frames", unit="frames", least=0)
