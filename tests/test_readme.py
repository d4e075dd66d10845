"""The README stays true: its map names every file, and what it names exists."""

import re

from tests.fork_server import PROJECT

TEXT = (PROJECT / "README.md").read_text()


def test_map_has_one_line_a_file():
    block = TEXT[TEXT.index("## Files") :]
    for package in ("cjepa_dist", "data_prep", "slurm"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            if path.name != "__init__.py":
                name = str(path.relative_to(PROJECT / package))
                assert re.search(rf"^  {re.escape(name)} ", block, re.MULTILINE), (
                    f"{package}/{name} is not in the README's map"
                )
    section = ""
    for line in block.splitlines():
        if match := re.match(r"^(\w+)/$", line):
            section = match[1]
        elif match := re.match(r"^  ([\w/.]+\.py) ", line):
            assert (PROJECT / section / match[1]).is_file(), (
                f"the README's map names {section}/{match[1]}, which is not there"
            )


def test_named_files_and_modules_exist():
    for page in (
        PROJECT / "README.md",
        PROJECT / "docs" / "clevrer.md",
        PROJECT / "docs" / "slurm.md",
    ):
        text = page.read_text()
        for path in re.findall(r"configs/[\w/]+\.yaml", text):
            assert (PROJECT / path).is_file(), f"{page.name} names {path}"
        for module in re.findall(r"-m ((?:cjepa_dist|data_prep|slurm)\.\w+)", text):
            folder = PROJECT / module.replace(".", "/")
            assert folder.with_suffix(".py").is_file() or (folder / "__main__.py").is_file(), (
                f"{page.name} names {module}"
            )
