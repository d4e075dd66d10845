"""Pictures that evaluations write beside their results: counterfactual worlds, graphs.

They need matplotlib (extra `report`). The plots of a report are in `reporting/plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cjepa_dist.evaluation.counterfactual import ExampleWorld


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
