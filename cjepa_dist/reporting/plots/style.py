"""One style for all plots: colours, fonts, legends; a figure as inline SVG or as a PNG.

A figure is narrow enough for a phone. Its colours are those of a light page; in the SVG each of
them becomes a variable of the page's style sheet (`--ink`, `--series-1`, ...), which has other
values in the dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cjepa_dist.errors import UserError

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#fefefe"
# Told apart with all common kinds of colour blindness (Okabe and Ito); markers differ too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8569a", "#c98a00", "#3fa0d8", "#7a3b69")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
CONTROL_DASHES = ("--", ":", "-.", (0, (1, 1)))
CONTROL_MARKERS = ("x", "+", "|", "1")
WIDTH = 4.2  # inches: letters are of the same size as the text on a phone
MAX_LABEL = 34  # letters
MAX_LEGEND_LINE = 50  # letters, of the two labels in it

VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES, 1)
}
SETTINGS: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",  # letters stay text: small, selectable, in the page's font
    "svg.hashsalt": "cjepa",  # the same data make the same file
    "font.size": 9.5,
    "text.parse_math": False,  # a name may have a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.9,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Plot:
    """A plot on the page: heading, picture, what it shows for who cannot see it, and a caption.

    `figure` was made within `plot_style()`. `name` is unique on the page.
    """

    name: str
    title: str
    figure: Any
    alt: str
    caption: str

    @property
    def svg(self) -> str:
        return to_svg(self.figure, self.name)


@contextmanager
def plot_style() -> Iterator[None]:
    """Figures made and saved within have the style. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "plots need matplotlib, which is not installed: pip install 'cjepa-dist[report]'"
        ) from error
    with matplotlib.rc_context(SETTINGS):
        yield


def new_figure(height: float = 3.2) -> tuple[Any, Any]:
    """(figure, axes), without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def add_legend(figure: Any, axis: Any, columns: int = 2) -> None:
    """A legend below the axes, in the order in which the lines were drawn."""
    handles, labels = axis.get_legend_handles_labels()
    if sum(sorted(map(len, labels))[-2:]) > MAX_LEGEND_LINE:
        columns = 1
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=min(columns, len(labels)),
        columnspacing=1.4,
        handlelength=2.2,
        handletextpad=0.6,
        labelspacing=0.35,
    )


def use_log_scale(axis: Any, which: str) -> None:
    """A logarithmic x or y axis with plain numbers on its ticks."""
    from matplotlib import ticker

    axis.set(**{f"{which}scale": "log"})
    low, high = getattr(axis, f"get_{which}lim")()
    if high / low < 3:  # too few round numbers in between
        locator: Any = ticker.MaxNLocator(4)
    else:
        locator = ticker.LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,))
    one = getattr(axis, f"{which}axis")
    one.set_major_locator(locator)
    one.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    one.set_minor_locator(ticker.NullLocator())


def shorten(label: str) -> str:
    """A label that fits; matplotlib leaves out labels that begin with an underscore."""
    label = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
    return f" {label}" if label.startswith("_") else label


def to_svg(figure: Any, name: str) -> str:
    """The figure as an <svg> element that takes the page's colours and the width that it gets.

    `name` keeps its ids apart from those of other figures on the page.
    """
    buffer = io.StringIO()
    with plot_style():
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.strip()


def save_png(figure: Any, path: Path) -> None:
    """On white, for pages that show no SVG."""
    with plot_style():
        figure.savefig(path, dpi=160, facecolor="white")
