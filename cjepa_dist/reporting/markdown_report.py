"""report.md: the summary, then all tables, then how the numbers were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cjepa_dist.reporting import tables, vqa_tables
from cjepa_dist.reporting.page.render import Section
from cjepa_dist.reporting.paired_runs import paired_section
from cjepa_dist.reporting.plots.style import save_png
from cjepa_dist.reporting.program_table import closed_fraction_table
from cjepa_dist.reporting.results import ReportResults
from cjepa_dist.reporting.seeds import seeds_section, shared_readers_section


def table_sections(
    results: ReportResults, reader_results: str = "", *, draws: int, seed: int
) -> str:
    """All tables as Markdown, each part under a heading of level 2.

    `reader_results`: the folder with the answers of shared readers, "" = none; `draws` and `seed`
    are those of the bootstrap of differences.
    """
    bootstrap: dict[str, Any] = {"draws": draws, "seed": seed}
    programs = "Question programs on events decoded from rollouts (privileged readers)"
    lines = [
        *paired_section(results.world_models, results.split, seed=seed),
        *seeds_section(results.world_models, "world_model", **bootstrap),
        *seeds_section(results.aloes, "vqa", **bootstrap),
        *seeds_section(
            results.symbolic_runs, "vqa", title="Question programs on rollouts", **bootstrap
        ),
        *shared_readers_section(reader_results, results.split, **bootstrap),
        *tables.world_model_tables(results.errors),
        *tables.graph_tables(results.graphs),
        *tables.counterfactual_tables(results.counterfactual),
        *vqa_tables.accuracy_table(results.vqa),
        *vqa_tables.difference_table(results.vqa, **bootstrap),
        *vqa_tables.accuracy_table(results.symbolic, programs),
        *closed_fraction_table(results.symbolic, **bootstrap),
        *vqa_tables.difference_table(results.symbolic, **bootstrap),
        *vqa_tables.published_table(results.vqa),
    ]
    return "\n".join(lines)


def markdown_report(
    results: ReportResults,
    summary: list[str],
    head: str,
    table_text: str,
    pictures: dict[str, str],
    provenance: str,
) -> str:
    """The whole text; `head` is Markdown that comes first, `pictures` are {file: what it shows}."""
    parts = [
        head,
        f"# Report, split {results.split}\n",
        *(f"> **Warning:** {line}\n" for line in results.warnings),
        *(["## Summary\n", *(f"- {line}" for line in summary), ""] if summary else []),
        "Plots, and scenes that move, are in report.html.\n",
        *(f"![{shown}]({name})\n" for name, shown in pictures.items()),
        table_text,
        provenance,
    ]
    return "\n".join(part for part in parts if part)


# The plots that report.md shows too: {file: names of plots, the first that there is}.
PICTURES = {
    "vqa.png": ("accuracy", "programs"),
    "world_model.png": ("errors-colliding", "errors-one-step"),
}


def write_pictures(sections: list[Section], out: Path) -> dict[str, str]:
    """Write PICTURES into `out`; {file: what it shows}."""
    plots = {plot.name: plot for section in sections for plot in section.plots}
    shown = {}
    for name, wanted in PICTURES.items():
        plot = next((plots[key] for key in wanted if key in plots), None)
        if plot is not None:
            save_png(plot.figure, out / name)
            shown[name] = plot.title
    return shown
