"""A report as one HTML file that needs no network: `Page` -> text, by report.html.jinja.

Whatever a run, a folder or an error is called stays text: the template escapes it, and Markdown is
read without HTML, links and images. A content policy in the page forbids it to load anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from cjepa_dist.errors import UserError
from cjepa_dist.reporting.plots.style import Plot


@dataclass(frozen=True)
class Section:
    """Plots about one question; a section without plots is not shown."""

    key: str
    title: str
    intro: str
    plots: list[Plot]


@dataclass
class Page:
    """What is on the page, from the top down.

    `kind`: a word or two above the title. `facts`: short notes below it. `head`: Markdown that
    must not be missed, such as jobs that failed. `scenes`: (title, fragment of HTML); `no_scenes`
    says why there are none. `tables`: (heading, Markdown). `provenance`: Markdown.
    """

    title: str
    kind: str = ""
    facts: list[str] = field(default_factory=list)
    head: str = ""
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    scenes_intro: str = ""
    scenes: list[tuple[str, str]] = field(default_factory=list)
    no_scenes: str = ""
    sections: list[Section] = field(default_factory=list)
    tables: list[tuple[str, str]] = field(default_factory=list)
    provenance: str = ""
    command: str = ""


def render_page(page: Page) -> str:
    """The HTML. Raises UserError without the libraries of the extra `report`."""
    return (
        environment()
        .get_template("report.html.jinja")
        .render(page=page, style=template_source("report.css"))
    )


@lru_cache
def environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise UserError(
            "report.html needs jinja2, which is not installed: pip install 'cjepa-dist[report]'"
        ) from error
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    made.filters["markdown"] = lambda text: jinja2.filters.Markup(markdown_to_html(text))
    return made


def template_source(name: str) -> str:
    """The text of a file in this folder, also in an installed wheel."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def markdown_to_html(text: str) -> str:
    """Tables, headings, code and emphasis; HTML, links and images stay text."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
    return str(reader.render(text))


def split_by_heading(text: str) -> list[tuple[str, str]]:
    """Markdown -> (heading, text below it) for each heading of level 2; text before is dropped."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return list(zip((title.strip() for title in parts[1::2]), parts[2::2]))
