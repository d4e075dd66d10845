"""Figures of results: accuracies, errors of world models, counterfactual worlds, graphs.

They need matplotlib (extra `report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.evaluation.counterfactual import ExampleWorld
from cjepa_dist.reporting.tables import METHOD_LABELS, Results
from cjepa_dist.reporting.vqa_tables import group_label, run_title

BAR_GROUPS = (
    "descriptive.question",
    "explanatory.question",
    "predictive.question",
    "counterfactual.question",
    "multiple_choice.option",
)


def new_axes(
    columns: int, width: float = 6.0, rows: int = 1, height: float = 4.0
) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)


def save_figure(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def plot_accuracy(results: Results, path: Path) -> Path:
    """Bars of accuracy with 95 % intervals by question type, a colour per run.

    The accuracy of the majority answer is a black line.
    """
    figure, axes = new_axes(1, width=9.0)
    axis = axes[0, 0]
    baselines = next(iter(results.values()))["baselines"]
    groups = [
        group
        for group in BAR_GROUPS
        if any(result["accuracy"][group]["count"] for result in results.values())
    ]
    x, width = np.arange(len(groups)), 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
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
            label=run_title(name, result),
        )
    for i, group in enumerate(groups):
        majority = baselines["majority_by_kind"][group]
        if majority is not None:
            axis.hlines(
                100 * majority,
                i - 0.45,
                i + 0.45,
                colors="black",
                label="majority answer" if i == 0 else None,
            )
    axis.set_xticks(x, [group_label(group).replace(", ", "\n") for group in groups])
    axis.set_ylabel("accuracy, percent")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8)
    return save_figure(figure, path)


def plot_world_models(models: Results, path: Path) -> Path:
    """Left: error of one step by class. Right: position error of colliding objects by horizon.

    The right figure is there if a model was evaluated on rollouts.
    """
    rollouts = {
        name: result["rollout"]["methods"]
        for name, result in models.items()
        if result.get("rollout")
    }
    figure, axes = new_axes(2 if rollouts else 1)
    axis = axes[0, 0]
    lines = cells_by_legend(
        {name: result["one_step"]["methods"] for name, result in models.items()}
    )
    classes = list(next(iter(next(iter(models.values()))["one_step"]["methods"].values())))
    x, width = np.arange(len(classes)), 0.8 / len(lines)
    for i, (name, cells) in enumerate(lines.items()):
        values = [cells.get(c, {}).get("mean", {}).get("slot_mse") or np.nan for c in classes]
        axis.bar(x + (i + 0.5) * width - 0.4, values, width, label=name)
    axis.set_xticks(x, [c.replace("_", " ") for c in classes])
    axis.set_yscale("log")
    axis.set_ylabel("slot MSE, one step")
    axis.legend(fontsize=7)
    if rollouts:
        axis = axes[0, 1]
        for name, cells in cells_by_legend(rollouts).items():
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
    return save_figure(figure, path)


def cells_by_legend(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{legend: errors by class}: the predictor of every model, and the simple methods once.

    Simple methods do not depend on the model, only on the data.
    """
    lines = {
        METHOD_LABELS[m]: cells
        for m, cells in next(iter(models.values())).items()
        if m != "predictor"
    }
    return lines | {name: methods["predictor"] for name, methods in models.items()}


def plot_counterfactual_worlds(examples: Sequence[ExampleWorld], path: Path) -> np.ndarray:
    """A column per world, a row per way to predict it, a colour per slot, a dot where it starts.

    Thick lines: the slot has diverged in the true world. Dashed: the removed object. Returns the
    picture, (H, W, 3) uint8.
    """
    from matplotlib import image

    names = list(examples[0].paths)
    figure, axes = new_axes(len(examples), 3.0, len(names), 3.0)
    for column, example in enumerate(examples):
        for row, name in enumerate(names):
            axis, (position, present) = axes[row, column], example.paths[name]
            for slot in np.flatnonzero(present.any(0)):
                known = np.where(present[:, slot, None], position[:, slot], np.nan)
                later = np.arange(len(known)) >= example.diverged[slot]
                style = {"color": f"C{slot}", "linestyle": "--" if slot == example.removed else "-"}
                axis.plot(*known.T, linewidth=1, **style)
                if slot != example.removed:
                    axis.plot(*np.where(later[:, None], known, np.nan).T, linewidth=3, **style)
                start = known[present[:, slot].argmax()]
                axis.plot(*start, marker="o", markersize=4, color=f"C{slot}")
            axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal")
        axes[0, column].set_title(example.title, fontsize=8)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return (255 * image.imread(save_figure(figure, path))[..., :3]).astype(np.uint8)


def plot_graphs(graphs: dict[str, np.ndarray], path: Path) -> Path:
    """A row per window, a column per graph: `graphs` maps a title to adjacencies (B, S, S)."""
    windows = len(next(iter(graphs.values())))
    figure, axes = new_axes(len(graphs), 1.7, windows, 1.8)
    for column, (name, adjacency) in enumerate(graphs.items()):
        diagonal = np.eye(adjacency.shape[1], dtype=bool)
        for window in range(windows):
            axis = axes[window, column]
            values = np.where(diagonal, np.nan, adjacency[window])
            axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(name.replace("_", "\n").replace(":", "\n"), fontsize=7)
    figure.supxlabel("influence of slot j", fontsize=8)
    figure.supylabel("on slot i", fontsize=8)
    return save_figure(figure, path)
