"""Published CLEVRER accuracies in percent, to print beside ours.

The rows of the validation split share our protocol; those of the test split show what other methods
reach on real CLEVRER. Numbers on the simulated world are not comparable with any of them: it has
another world, other questions and other slots.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published row: accuracies per question by type, and per option where reported."""

    name: str
    split: str
    question: tuple[float, float, float, float]  # by type, as in clevrer.vocabulary.QUESTION_TYPES
    option: tuple[float, float, float] | None = None  # descriptive questions have none
    average: float | None = None
    note: str = ""


_EARLY = "one run, evaluated at epoch 79 of 400"

PUBLISHED = (
    Published(
        "CTT follow-up: C-JEPA baseline, 2 hidden", "val", (91.4, 84.9, 80.1, 57.5), note=_EARLY
    ),
    Published("CTT follow-up: CTT-JEPA", "val", (89.8, 81.0, 77.9, 49.4), note=_EARLY),
    Published(
        "C-JEPA, VideoSAUR, 0 hidden",
        "val",
        (89.59, 80.58, 75.04, 47.68),
        (92.88, 86.15, 79.53),
        82.79,
    ),
    Published(
        "C-JEPA, VideoSAUR, 1 hidden",
        "val",
        (90.39, 82.22, 78.58, 49.67),
        (93.41, 88.28, 80.34),
        83.95,
    ),
    Published(
        "C-JEPA, VideoSAUR, 2 hidden",
        "val",
        (91.02, 82.54, 79.56, 50.25),
        (93.53, 88.68, 80.61),
        84.56,
    ),
    Published(
        "C-JEPA, VideoSAUR, 3 hidden",
        "val",
        (91.98, 87.30, 83.86, 63.60),
        (95.35, 91.16, 86.49),
        87.61,
    ),
    Published(
        "C-JEPA, VideoSAUR, 4 hidden",
        "val",
        (92.84, 90.74, 86.93, 68.81),
        (96.62, 93.03, 88.67),
        89.40,
    ),
    Published(
        "C-JEPA, SAVi, 0 hidden", "val", (84.05, 76.04, 70.51, 41.10), (91.20, 83.48, 76.69), 77.28
    ),
    Published(
        "C-JEPA, SAVi, 2 hidden", "val", (87.81, 87.27, 77.25, 60.19), (95.34, 87.46, 85.16), 83.88
    ),
    Published(
        "C-JEPA, SAVi, 4 hidden", "val", (80.88, 72.72, 59.89, 34.06), (89.85, 77.23, 73.55), 73.28
    ),
    Published("WAG, VideoSAUR", "val", (94.05, 94.13, 89.54, 73.76), average=91.37),
    Published("WAG, SAVi", "val", (95.29, 95.35, 91.99, 75.45), average=92.72),
    Published("ALOE on SAVi slots, no world model", "val", (95.0, 93.9, 85.4, 73.9)),
    Published("ALOE + SlotFormer", "test", (95.2, 94.8, 93.3, 73.8)),
    Published("ALOE", "test", (94.0, 96.0, 87.5, 75.6)),
    Published("VRDP, detector and programs", "test", (93.4, 91.9, 91.4, 84.3)),
    Published("DCL", "test", (90.7, 82.8, 82.0, 46.5)),
    Published("NS-DR", "test", (88.1, 79.6, 68.7, 42.2)),
)
