"""report.html: what a report shows, put on one page.

ReportResults ──plots──> Section ──┐
run of a world model ──scene_view──┼──> Page ──render_page──> one file, without a network
tables as Markdown ────────────────┘
"""

from __future__ import annotations

from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.reporting import scene_view
from cjepa_dist.reporting.page.render import Page, Section, render_page, split_by_heading
from cjepa_dist.reporting.plots.counterfactual import counterfactual_plot
from cjepa_dist.reporting.plots.errors import INTRO, error_plots
from cjepa_dist.reporting.plots.graphs import graph_plots
from cjepa_dist.reporting.plots.learning import learning_plots
from cjepa_dist.reporting.plots.questions import accuracy_plot, program_plot, published_plot
from cjepa_dist.reporting.plots.style import plot_style
from cjepa_dist.reporting.results import ReportResults
from cjepa_dist.reporting.runs import EvaluatedRun
from cjepa_dist.reporting.summary import training_lines

MAX_RUN_FACTS = 8

SCENES_INTRO = (
    "Videos of the {split} split, seen from above, chosen because much happens in them. The model"
    " observes 128 frames, then predicts 32. Beside it stands what the simulator says, and what"
    " both say would have happened without one object."
)


def html_report(
    results: ReportResults,
    summary: list[str],
    sections: list[Section],
    *,
    head: str,
    table_text: str,
    provenance: str,
    scenes: int,
    command: str,
) -> str:
    """The whole page. `scenes`: how many videos to draw; `head`: Markdown that comes first."""
    page = Page(
        "What the world models learned",
        kind="cjepa_dist report",
        facts=describe_runs(results),
        head=head,
        warnings=results.warnings,
        summary=summary,
        sections=sections,
        tables=split_by_heading(table_text),
        provenance=provenance.replace("## How these numbers were made\n", "", 1),
        command=command,
    )
    if scenes and results.world_models:
        add_scenes(page, results.world_models[0], results.split, scenes)
    return render_page(page)


def describe_runs(results: ReportResults) -> list[str]:
    """Short facts for the head of the page: each run if they are few."""
    facts = training_lines(results)
    if len(facts) > MAX_RUN_FACTS:
        counts = ((len(results.world_models), "world model"), (len(results.aloes), "ALOE"))
        facts = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    if results.world_models:
        facts.append(f"videos: {results.world_models[0].data_size}")
    return [*facts, f"measured on split {results.split}"]


def add_scenes(page: Page, run: EvaluatedRun, split: str, count: int) -> None:
    """The scenes of a world model; where there can be none the page says why."""
    try:
        for video in scene_view.interesting_videos(run.path, split, count):
            fragment = scene_view.scene_html(scene_view.load_scene(run.path, split, video))
            page.scenes.append((f"Video {video}, predicted by {run.name}", fragment))
    except UserError as error:
        page.no_scenes = f"No scene could be drawn: {error}"
    page.scenes_intro = SCENES_INTRO.format(split=split)


def plot_sections(results: ReportResults) -> list[Section]:
    """All sections with plots, in the order of the page."""
    with plot_style():
        counterfactual = [
            counterfactual_plot(results.counterfactual),
            program_plot(results.symbolic),
        ]
        return [
            Section(
                "errors",
                "What happens next",
                INTRO,
                error_plots(results.errors),
            ),
            Section(
                "graphs",
                "Who influences whom",
                "Edges between objects, read from a world model that has seen no label, against the"
                " contacts of the simulator.",
                graph_plots(results.graphs),
            ),
            Section(
                "counterfactual",
                "What would have happened without an object",
                "Predicted worlds without an object, against the simulator's.",
                [plot for plot in counterfactual if plot],
            ),
            Section(
                "questions",
                "Questions about videos",
                "CLEVRER's questions, each type beside its controls.",
                [
                    plot
                    for plot in (
                        accuracy_plot(results.vqa),
                        published_plot(results.vqa, is_simulated(results)),
                    )
                    if plot
                ],
            ),
            Section(
                "learning",
                "How the runs learned",
                "What the runs logged while they trained.",
                learning_plots(results.world_models, results.aloes),
            ),
        ]


def is_simulated(results: ReportResults) -> bool:
    """Whether an ALOE answered questions on simulated videos; True if that cannot be read."""
    for run in results.aloes:
        try:
            source = Manifest.load(run.config.data).source
            if source.get("kind") == "rollout":
                source = Manifest.load(source["data"]).source
        except (UserError, KeyError):
            return True
        if source.get("made_by") == "data_prep.simulate":
            return True
    return False
