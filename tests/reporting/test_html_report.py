"""report.html of real results: complete, without a network, and safe for whatever a run is called.

The runs are untrained tasks on simulated videos; their evaluations are real.
"""

import json
import re
from html.parser import HTMLParser

import pytest

from cjepa_dist import evaluate, evaluate_graph, report
from cjepa_dist.config import schema
from cjepa_dist.errors import UserError
from tests.reporting.untrained import ALOE, PREDICTOR, save_run

HOSTILE = '<script>alert(1)<img src=x onerror=alert(2)> & "![p](http:q) $a$ `|'
SECTIONS = ("errors", "graphs", "questions", "learning")
SIZE = {"slots": 7, "slot_dim": 128}
VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "image"}


class Elements(HTMLParser):
    """All elements of a page: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def log(run, rows):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_data):
    """The folder of a report on two world models and two ALOEs, one with a hostile name."""
    root = tmp_path_factory.mktemp("report")
    predictor = schema.PredictorConfig(**{**PREDICTOR, **SIZE})
    aloe = schema.AloeConfig(**{**ALOE, **SIZE})
    runs = []
    for seed, name in enumerate(("model", HOSTILE)):
        config = schema.TrainWorldModel(
            data=str(small_data), run=str(root / name), seed=seed, predictor=predictor
        )
        run = save_run(config)
        rows = [
            {"step": step, "kind": kind, "loss_future": 1 / step, "copy_last_frame": 0.1}
            for step in range(1, 400)
            for kind in ("train", "val")[: 1 + (step % 100 == 0)]
        ]
        log(run, rows)
        small = {"windows": 32, "bootstrap_draws": 5}
        evaluate.main(evaluate.Evaluate(run=str(run), videos=4, **small))
        evaluate_graph.main(
            evaluate_graph.EvaluateGraph(
                run=str(run), data=str(small_data), figure_windows=2, **small
            )
        )
        runs.append(run)
    for name, blind in (("aloe", False), ("blind " + HOSTILE, True)):
        config = schema.TrainAloe(
            data=str(small_data), run=str(root / name), starts=2, aloe=aloe, blind=blind
        )
        run = save_run(config)
        log(run, [{"step": 1, "kind": "train", "loss": 3.0, "accuracy_descriptive": 0.1}])
        evaluate.main(evaluate.Evaluate(run=str(run), bootstrap_draws=5))
        runs.append(run)
    head = root / "head.md"
    head.write_text(f"# Missing: 1 of 9 jobs\n\n| job | why |\n|---|---|\n| {HOSTILE[:8]} | x |\n")
    named = ",".join(map(str, runs))
    out = root / "out"
    assert report.main(report.Report(named, str(out), bootstrap_draws=10, head=str(head))) == 0
    return out


@pytest.fixture(scope="module")
def page(made):
    return (made / "report.html").read_text(encoding="utf-8")


def test_it_has_all_parts(made, page):
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {*SECTIONS, "tables", "provenance", "summary", "scenes"} <= set(ids)
    figures = [a for tag, a in elements.found if tag == "figure" and a.get("class") == "card plot"]
    assert len(figures) >= 11
    described = [a for _, a in elements.found if len(a.get("aria-label", "")) > 60]
    assert len(described) >= len(figures), "a plot is not described"
    assert page.count("<figcaption>") >= len(figures)
    assert page.index("Missing: 1 of 9") < page.index('id="summary"') < page.index('id="scenes"')
    assert page.index('id="scenes"') < page.index('id="errors"') < page.index('id="tables"')
    for table in ("World models", "Graphs: who influences whom", "VQA", "Published numbers"):
        assert f"<summary>{table}" in page, table
    assert "&lt;script&gt;" in page and len(page) < 5e6
    text = (made / "report.md").read_text()
    assert text.index("# Missing: 1 of 9 jobs") < text.index("## Summary") < text.index("## World")
    assert all(f"]({name})" in text for name in ("vqa.png", "world_model.png"))


def test_nothing_is_loaded_and_no_name_becomes_html(page):
    elements = Elements(page)
    targets = [
        (tag, name, value)
        for tag, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster")
    ]
    assert all(value.startswith(("#", "data:")) for _, _, value in targets), targets
    assert not any(name.startswith("on") for _, a in elements.found for name in a)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "alert(1)" in elements.text, "the hostile name is not shown at all"
    assert not any(tag == "img" and a.get("src") == "x" for tag, a in elements.found)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(made, browser, width, dark):
    assert browser.open(made / "report.html", width, dark) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)") == []
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.evaluate(loaded)
    plots = browser.evaluate(
        "[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert len(plots) >= 11 and all(250 < size <= width for size in plots)
    # Letters and lines take the colours of the page: seen on light and on dark paper.
    color = "getComputedStyle(document.querySelector('{}')).{}"
    ink = browser.evaluate(color.format(".plot svg text", "fill"))
    paper = browser.evaluate(color.format(".plot", "backgroundColor"))
    assert abs(brightness(ink) - brightness(paper)) > 150
    assert (brightness(paper) < 128) == dark
    # Tables that are folded away fit too once they are open.
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def brightness(color):
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


def test_a_scene_that_cannot_be_drawn_is_one_line(made, small_data, tmp_path):
    run = save_run(
        schema.TrainWorldModel(
            data=str(small_data),
            run=str(tmp_path / "other"),
            predictor=schema.PredictorConfig(**{**PREDICTOR, "slots": 3, "slot_dim": 128}),
        )
    )
    config = report.Report(str(run), str(tmp_path / "out"), bootstrap_draws=10)
    assert report.main(config) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No scene could be drawn: " in page and "world_model_val.json is missing" in page
    with pytest.raises(UserError, match="cannot be read"):
        report.main(report.Report(str(run), str(tmp_path), head=str(tmp_path / "nowhere")))
