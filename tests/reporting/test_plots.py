"""What plots show: which runs, which points, and colours that follow the page."""

import json

import numpy as np
import pytest

from cjepa_dist.reporting.page.render import Page, markdown_to_html, render_page, split_by_heading
from cjepa_dist.reporting.plots import style
from cjepa_dist.reporting.plots.graphs import graph_plots, ordered
from cjepa_dist.reporting.plots.learning import MAX_POINTS, read_curves, thin
from cjepa_dist.reporting.plots.questions import program_plot, published_plot
from cjepa_dist.reporting.plots.runs import drawn_runs
from cjepa_dist.reporting.published import PUBLISHED


def test_the_first_seed_of_each_arm_is_drawn():
    names = ["a/seed_0", "a/seed_1", "b/seed_0", "b/seed_0_aloe_1", "seed_0"]
    drawn, note = drawn_runs({name: {"of": name} for name in names})
    assert {label: result["of"] for label, result in drawn.items()} == {
        "a": "a/seed_0",
        "b": "b/seed_0",
        "b_aloe_1": "b/seed_0_aloe_1",
        "seed_0": "seed_0",
    }
    assert "4 of 5 runs" in note
    assert drawn_runs({"a/seed_0": {}})[1] == ""
    assert len(drawn_runs({str(n): {} for n in range(9)})[0]) == 5


def test_curves_are_read_and_thinned(tmp_path):
    rows = [{"step": n, "kind": "train", "loss": n / 2} for n in range(1000)]
    rows[3] = {"step": 3, "kind": "train"}
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 1000, "kin')
    curves = read_curves(tmp_path)
    assert curves.keys() == {"train"} and np.isnan(curves["train"]["loss"][3])
    short = thin(curves["train"]["loss"])
    assert len(short) <= MAX_POINTS and short[-1] == pytest.approx(
        np.mean(np.arange(994, 1000)) / 2
    )
    assert len(thin(np.arange(5.0))) == 5 and read_curves(tmp_path / "nowhere") == {}


def test_an_svg_takes_the_colours_of_the_page_and_keeps_its_ids_apart():
    def draw():
        with style.plot_style():
            figure, axis = style.new_figure()
            axis.plot([0, 1], [1, 2], color=style.SERIES[0], label="<b>&$x$")
            style.add_legend(figure, axis)
            return style.to_svg(figure, "one")

    svg = draw()
    assert svg.startswith("<svg") and "var(--series-1)" in svg and "var(--ink)" in svg
    assert not any(color in svg for color in style.VARIABLES)
    assert "&lt;b&gt;&amp;$x$" in svg and "<b>" not in svg
    assert 'id="one-' in svg and svg.count(' id="') == svg.count(' id="one-')
    assert svg == draw(), "the same data make another file"
    assert "width=" not in svg[: svg.index(">")]


def test_labels_fit():
    assert style.shorten("x" * 80) == "x" * (style.MAX_LABEL - 1) + "…"
    assert style.shorten("_hidden") == " _hidden"  # matplotlib leaves out labels with _ in front


def test_plots_of_graphs_have_the_curves_that_were_stored():
    cell = {"near_miss_auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}
    names = ("distance", "mine", "interventional:empty", "oracle")
    curve = {"recall": [0.5, 1.0], "precision": [0.9, 0.4]}
    curves = {name: {"all": curve, "near_miss": None} for name in names}
    part = {
        "base_rate": 0.2,
        "near_miss_base_rate": 0.5,
        "estimators": dict.fromkeys(names, cell),
        "curves": curves,
    }
    assert ordered(list(names)) == ["interventional:empty", "mine", "oracle", "distance"]
    with style.plot_style():
        plots = {p.name: p for p in graph_plots({"m": {"targets": {"contact": part}}})}
    assert plots.keys() == {"edges-auroc", "edges-all-0"}  # no near misses were stored
    lines = plots["edges-all-0"].figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        "interventional, empty slot",
        "mine",
        "distance",
        "an edge everywhere",
    ]
    assert list(lines[0].get_xdata()) == [0.5, 1.0] and list(lines[3].get_ydata()) == [0.2, 0.2]
    assert "mine 0.90" in plots["edges-all-0"].alt
    with style.plot_style():
        assert graph_plots({}) == [] and graph_plots({"m": {"targets": {}}}) == []


def answers(rollout, right):
    group = {"accuracy": right, "ci": [right - 0.02, right + 0.02], "count": 100}
    return {
        "rollout": rollout,
        "accuracy": {"counterfactual.option": group},
        "baselines": {"chance": {"counterfactual.option": 0.5}},
    }


def test_programs_stand_beside_their_controls():
    symbolic = {
        f"{model}: {rollout}": answers(rollout, right)
        for model in ("a", "b")
        for rollout, right in (("paired", 0.85), ("factual", 0.8), ("truth", 0.94))
    }
    with style.plot_style():
        plot = program_plot(symbolic)
    rows = [label.get_text() for label in plot.figure.axes[0].get_yticklabels()]
    assert rows == ["a", "b", "nothing else changes", "the simulator's own worlds"]
    assert "a: right options 85.0" in plot.alt and "nothing else changes: right options 80.0" in (
        plot.alt
    )
    with style.plot_style():
        assert program_plot({}) is None


def test_published_rows_are_all_drawn_and_the_caption_warns():
    kinds = ("descriptive", "explanatory", "predictive", "counterfactual")
    accuracy = {f"{kind}.question": {"accuracy": 0.5, "ci": None} for kind in kinds}
    with style.plot_style():
        plot = published_plot({"r": {"accuracy": accuracy}}, simulated=True)
    assert len(plot.figure.axes[0].get_lines()) == len(PUBLISHED) + 1
    assert plot.caption.startswith("Not comparable")


def test_markdown_of_tables():
    text = "before\n## One\n\n| a |\n|---|\n| ![x](http://y) [z](http://w) <b> |\n## Two\nend"
    (one, table), (two, end) = split_by_heading(text)
    assert (one, two, end) == ("One", "Two", "\nend")
    html = markdown_to_html(table)
    assert "<table>" in html and "&lt;b&gt;" in html
    assert "<a" not in html and "<img" not in html


def test_a_page_without_results_says_why():
    page = render_page(Page("No run has a checkpoint", head="# Missing: 1 job\n\n<b>why</b>"))
    assert "No run has a checkpoint" in page and "&lt;b&gt;why" in page
    assert "#tables" not in page and "<figure" not in page and 'class="summary"' not in page
