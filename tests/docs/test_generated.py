"""Pages and pictures that are made from the code are those of today's code."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cjepa_dist.config.fields import option
from tests.fork_server import PROJECT
from tools import concept_pictures, reference_pages


def test_the_reference_pages_are_current() -> None:
    # In a process of its own: tests register estimators, encoders and losses in this one.
    done = subprocess.run(
        [sys.executable, "-m", "tools.reference_pages", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_not_current_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs" / "reference"
    folder.mkdir(parents=True)
    monkeypatch.setattr(reference_pages, "project_root", lambda: tmp_path)
    monkeypatch.setattr(reference_pages, "commands_page", lambda: "new\n")
    monkeypatch.setattr(reference_pages, "config_page", lambda: "same\n")
    (folder / "commands.md").write_text("old\n")
    (folder / "config.md").write_text("same\n")
    assert reference_pages.main(["--check"]) == 1
    assert "commands.md is not current" in capsys.readouterr().err
    assert reference_pages.main([]) == 0
    assert reference_pages.main(["--check"]) == 0


def test_a_field_says_all_that_help_says() -> None:
    @dataclasses.dataclass
    class Schema:
        """What a <command> does."""

        frames: list[int] = option([1, 2], "frames to keep", unit="frames", choices=("1", "2"))
        fast: bool = option(False, "snake_case and `code_here`")

    assert list(reference_pages.schema_text(Schema)) == [
        r"What a \<command> does.",
        "",
        "- `frames`: frames to keep (default `[1, 2]`; frames; one of `1`, `2`)",
        r"- `fast`: snake\_case and `code_here` (default `false`)",
    ]


@pytest.mark.parametrize("name", concept_pictures.PICTURES)
def test_the_pictures_of_the_concepts_are_current(name: str) -> None:
    page = PROJECT / concept_pictures.FOLDER / f"{name}.svg"
    assert page.read_text() == concept_pictures.picture(name)
