"""The site of docs/: it builds without a warning, and every link of its pages leads somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import skip_or_fail
from tests.fork_server import PROJECT

LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """The links of a page, what it loads, and the names that a link may give after `#`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and (href := found.get("href")):
            self.links.append(href)
        if url := found.get(LOADED.get(tag, "")):
            self.loaded.append(url)


def broken_links(folder: Path) -> Iterator[str]:
    """One line for each link that leads nowhere; links to other hosts are checked by syntax."""
    # The page of an unknown address has absolute links: it may be shown in any folder.
    found = (path for path in folder.rglob("*.html") if path.name != "404.html")
    pages = {path: Page(path.read_text()) for path in found}
    for path, page in pages.items():
        for url in page.links + page.loaded:
            parts = urlsplit(url)
            there = is_an_address(url) if parts.scheme or parts.netloc else leads(url, path, pages)
            if not there:
                yield f"{path.relative_to(folder)}: {url}"


def is_an_address(url: str) -> bool:
    """Whether a link to another host may be one."""
    parts = urlsplit(url)
    known = parts.scheme in ("http", "https") and "." in parts.netloc
    return parts.scheme in ("data", "mailto") or (known and not re.search(r"\s", url))


def leads(url: str, page: Path, pages: dict[Path, Page]) -> bool:
    """Whether a link of `page` leads to a file of the site, and to a part of it that is there."""
    parts = urlsplit(url)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not parts.fragment or target not in pages:
        return target.is_file()
    return unquote(parts.fragment) in pages[target].anchors


def mkdocs(*arguments: str) -> "subprocess.CompletedProcess[str]":
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            skip_or_fail(f"{name} is not installed; pip install -e '.[docs]'")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *arguments],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("build", "--strict", "--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert list(broken_links(site)) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">A</h1><a href="a/#part">b</a><a href="#top">top</a>'
        '<a href="https://example.org/x">x</a><img src="missing.png">'
    )
    (tmp_path / "a" / "index.html").write_text(
        '<a href="../#bottom">c</a><a href="../nowhere/">d</a><a href="https://no host/">e</a>'
    )
    assert sorted(broken_links(tmp_path)) == [
        "a/index.html: ../#bottom",
        "a/index.html: ../nowhere/",
        "a/index.html: https://no host/",
        "index.html: a/#part",
        "index.html: missing.png",
    ]


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert [url for url in Page(path.read_text()).loaded if urlsplit(url).netloc] == [], path


def test_every_picture_has_words_for_who_cannot_see_it(site: Path) -> None:
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<img[^>]*>", path.read_text()):
            assert re.search(r'alt="[^"]{10,}"', tag, re.DOTALL), f"{path}: {tag}"


def test_the_api_pages_show_signatures(site: Path) -> None:
    text = (site / "reference" / "api" / "training" / "index.html").read_text()
    assert 'id="cjepa_dist.losses.jepa.future_loss"' in text
    assert len(list((site / "reference" / "api").rglob("index.html"))) == 6


def test_a_wrong_anchor_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](#b)\n")
    config = (PROJECT / "mkdocs.yml").read_text()
    validation = config[config.index("validation:") : config.index("nav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: a\n{validation}")
    done = mkdocs("build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "no such anchor" in done.stderr
