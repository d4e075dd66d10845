"""The pages stay true: what they name exists, their links lead somewhere, their lines are short."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjepa_dist.cli import COMMANDS
from tests.fork_server import PROJECT

PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for path in (
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(PROJECT / "docs").rglob("*.md"),
    )
)
FOLDERS = "cjepa_dist|data_prep|slurm|tools|tests|configs|docs"
MODULE = re.compile(r"-m ((?:cjepa_dist|data_prep|slurm|tools)(?:\.\w+)*)")
COMMAND = re.compile(r"(?:^|`)(?:\$ )?cjepa ([a-z]\S*)(?: ([^\s`]+))?", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Kinds of configs: a command may name one of its kind without folder and ending.
CONFIGS = {"train-world-model": "world_model", "train-aloe": "aloe", "simulate": "simulate"}
CONFIGS |= {"run": "experiment", "submit": "experiment"}


def text_of(page: str) -> str:
    """A page; of the changelog only what it says about names of today."""
    text = (PROJECT / page).read_text()
    if page == "CHANGELOG.md":
        text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    return text


def code_of(text: str) -> str:
    """The code of a page: its blocks and what stands between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return "\n".join([*blocks, *inline])


def named_paths(text: str) -> Iterator[str]:
    """Paths of this project in the code of a page, `*` included; FILE.yaml and the like are not."""
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/*.-]*)", code_of(text)):
        yield path.rstrip(".-")
    inner = "|".join(
        path.name for path in (PROJECT / "cjepa_dist").iterdir() if (path / "__init__.py").is_file()
    )
    for path in re.findall(rf"(?<![\w/.-])((?:{inner})/[\w/]+\.py)", code_of(text)):
        yield f"cjepa_dist/{path}"


def anchors(text: str) -> set[str]:
    """The names that a link may give after `#`, as GitHub makes them from headings."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    for path in named_paths(text_of(page)):
        if "/_project" in path:  # only in an installed wheel
            continue
        assert list(PROJECT.glob(path.rstrip("/"))), f"{page} names {path}"


@pytest.mark.parametrize("page", PAGES)
def test_named_modules_and_commands_exist(page: str) -> None:
    text = text_of(page)
    for module in MODULE.findall(text):
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (
            f"{page} names {module}"
        )
    for name, first in COMMAND.findall(code_of(text)):
        assert name in COMMANDS, f"{page} names the command cjepa {name}"
        kind = CONFIGS.get(name)
        if kind and re.fullmatch(r"[a-z]\w*", first):
            assert (PROJECT / "configs" / kind / f"{first}.yaml").is_file(), (
                f"{page}: cjepa {name} {first}"
            )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings(page: str) -> None:
    for target in LINK.findall(text_of(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, heading = target.partition("#")
        path = (PROJECT / page).parent / name if name else PROJECT / page
        assert path.exists(), f"{page} links to {target}"
        if heading:
            assert heading in anchors(path.read_text()), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_at_most_100_columns(page: str) -> None:
    long = [
        n for n, line in enumerate((PROJECT / page).read_text().splitlines(), 1) if len(line) > 100
    ]
    assert not long, f"{page}: lines {long}"


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


def test_the_layers_of_the_readme_are_those_that_are_enforced() -> None:
    text = (PROJECT / "README.md").read_text()
    block = text[text.index("cjepa_dist/ ") : text.index("\ndata_prep/ ")]
    shown = [name.removesuffix(".py") for name in re.findall(r"^  ([\w.]+)", block, re.MULTILINE)]
    contract = (PROJECT / ".importlinter").read_text().split("layers =")[1].split("\n\n")[0]
    enforced = [line.strip() for line in contract.splitlines() if line.strip() and "|" not in line]
    assert shown == enforced[::-1]


def test_the_code_map_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.code_map", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_code_map_notices_a_change(tmp_path: Path) -> None:
    from tools.code_map import code_map, folders

    (tmp_path / ".importlinter").write_text((PROJECT / ".importlinter").read_text())
    for name, first in (("data", "Data."), ("models", "Models.")):
        (tmp_path / "cjepa_dist" / name).mkdir(parents=True)
        (tmp_path / "cjepa_dist" / name / "a.py").write_text(f'"""{first}"""\n')
    assert [path.name for path in folders(tmp_path)] == ["models", "data"]
    text = code_map(tmp_path)
    assert "- `cjepa_dist/data/a.py`: Data." in text
    (tmp_path / "cjepa_dist" / "data" / "b.py").write_text('"""B."""\n')
    assert code_map(tmp_path) != text
