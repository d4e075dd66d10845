"""Pictures of results: accuracies, errors of world models, worlds without an object. They need matplotlib (extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.evaluation.counterfactual import Example
from cjepa_dist.reporting.tables import METHODS, label, title

Measured = dict[str, dict[str, Any]]
BARS = (
    "descriptive.question",
    "explanatory.question",
    "predictive.question",
    "counterfactual.question",
    "multiple_choice.option",
)


def canvas(columns: int, width: float = 6.0, rows: int = 1, height: float = 4.0) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)


def save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def vqa(measured: Measured, path: Path) -> Path:
    """Bars of accuracy with 95 % intervals, a group a question type, a colour a run; the majority answer as a black line."""
    figure, axes = canvas(1, width=9.0)
    axis = axes[0, 0]
    first = next(iter(measured.values()))
    groups = [
        group
        for group in BARS
        if any(result["accuracy"][group]["count"] for result in measured.values())
    ]
    x, width = np.arange(len(groups)), 0.8 / len(measured)
    for i, (name, result) in enumerate(measured.items()):
        cells = [result["accuracy"][group] for group in groups]
        heights = np.array([100 * (cell["accuracy"] or 0.0) for cell in cells])
        ends = np.array([[100 * v for v in (cell["ci"] or (0.0, 0.0))] for cell in cells])
        whiskers = np.abs(ends.T - heights)
        axis.bar(
            x + (i + 0.5) * width - 0.4,
            heights,
            width,
            yerr=whiskers,
            capsize=2,
            label=title(name, result),
        )
    for i, group in enumerate(groups):
        majority = first["without_looking"]["majority_by_kind"][group]
        if majority is not None:
            axis.hlines(
                100 * majority,
                i - 0.45,
                i + 0.45,
                colors="black",
                label="majority answer" if i == 0 else None,
            )
    axis.set_xticks(x, [label(group).replace(", ", "\n") for group in groups])
    axis.set_ylabel("accuracy, percent")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8)
    return save(figure, path)


def world_models(models: Measured, path: Path) -> Path:
    """Left: error of one step by class, log scale. Right, if rolled out: position error of colliding objects by horizon."""
    rolled = {
        name: result["rollout"]["methods"]
        for name, result in models.items()
        if result.get("rollout")
    }
    figure, axes = canvas(2 if rolled else 1)
    axis = axes[0, 0]
    lines = curves({name: result["one_step"]["methods"] for name, result in models.items()})
    classes = list(next(iter(next(iter(models.values()))["one_step"]["methods"].values())))
    x, width = np.arange(len(classes)), 0.8 / len(lines)
    for i, (name, cells) in enumerate(lines.items()):
        values = [cells.get(c, {}).get("mean", {}).get("slot_mse") or np.nan for c in classes]
        axis.bar(x + (i + 0.5) * width - 0.4, values, width, label=name)
    axis.set_xticks(x, [c.replace("_", " ") for c in classes])
    axis.set_yscale("log")
    axis.set_ylabel("slot MSE, one step")
    axis.legend(fontsize=7)
    if rolled:
        axis = axes[0, 1]
        for name, cells in curves(rolled).items():
            horizons = [
                h
                for h in cells["colliding"]
                if h != "mean" and cells["colliding"][h]["position_rmse"] is not None
            ]
            axis.plot(
                [int(h) for h in horizons],
                [cells["colliding"][h]["position_rmse"] for h in horizons],
                marker="o",
                label=name,
            )
        axis.set_xlabel("frames after 127")
        axis.set_ylabel("position RMSE, colliding objects, world units")
        axis.legend(fontsize=7)
    return save(figure, path)


def curves(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{legend: numbers by class}: every model's predictor, and the simple methods once (they are the same for all models of a data set)."""
    lines = {
        METHODS[m]: cells for m, cells in next(iter(models.values())).items() if m != "predictor"
    }
    return lines | {name: methods["predictor"] for name, methods in models.items()}


def counterfactual(examples: Sequence[Example], path: Path) -> np.ndarray:
    """A column a world, a row a way to know it; a colour a slot, a dot where it starts. Thick: truly diverged; dashed: the removed one.

    Returns the picture, (H, W, 3) uint8.
    """
    from matplotlib import image

    names = list(examples[0].paths)
    figure, axes = canvas(len(examples), 3.0, len(names), 3.0)
    for column, example in enumerate(examples):
        for row, name in enumerate(names):
            axis, (place, seen) = axes[row, column], example.paths[name]
            for slot in np.flatnonzero(seen.any(0)):
                known = np.where(seen[:, slot, None], place[:, slot], np.nan)
                later = np.arange(len(known)) >= example.diverged[slot]
                style = {"color": f"C{slot}", "linestyle": "--" if slot == example.removed else "-"}
                axis.plot(*known.T, linewidth=1, **style)
                if slot != example.removed:
                    axis.plot(*np.where(later[:, None], known, np.nan).T, linewidth=3, **style)
                axis.plot(
                    *known[seen[:, slot].argmax()], marker="o", markersize=4, color=f"C{slot}"
                )
            axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal")
        axes[0, column].set_title(example.title, fontsize=8)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return (255 * image.imread(save(figure, path))[..., :3]).astype(np.uint8)
