"""Writes docs/code_map.md: a line for each module, by folder, in the order of the layers.

python -m tools.code_map            write it
python -m tools.code_map --check    exit code 1 if it is not current; write nothing

.importlinter ──layers──> folders in order ──path, first line of the docstring──> Markdown
"""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from pathlib import Path

from cjepa_dist.config.locate import project_root

PAGE = Path("docs/code_map.md")
PACKAGES = ("tools", "slurm", "data_prep", "cjepa_dist")
WIDTH = 100
HEADER = """# Code map

Made by `python -m tools.code_map`; do not edit. A line for each module: its path and what it is.
Layers from the top down: one imports only from those below it (`.importlinter`). The lowest is
`cjepa_dist/errors.py`.
"""


def code_map(root: Path) -> str:
    """The text of the page."""
    parts = [HEADER]
    for folder in folders(root):
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        entries = [entry for path in in_order(root, modules) for entry in module_entry(root, path)]
        parts.append("\n".join([f"## {folder.relative_to(root)}", "", *entries, ""]))
    return "\n".join(parts)


def folders(root: Path) -> list[Path]:
    """All folders with modules: the packages from the top layer down, each with what is in it."""
    found: list[Path] = []
    for package in PACKAGES:
        inner = {path.parent for path in (root / package).rglob("*.py")} - {root / package}
        rank = {root / package / name: n for n, name in enumerate(layers(root))}
        found.append(root / package)
        # A folder inside another comes right after it.
        found += sorted(inner, key=lambda path: (layer_rank(path, rank), path))
    return [path for path in found if any(p.name != "__init__.py" for p in path.glob("*.py"))]


def layer_rank(path: Path, rank: dict[Path, int]) -> int:
    """The place of the layer that a folder belongs to; 0 where there are none."""
    return next((rank[parent] for parent in (path, *path.parents) if parent in rank), 0)


def layers(root: Path) -> list[str]:
    """The layers of cjepa_dist, the top one first; several modules may be one layer."""
    parser = configparser.ConfigParser()
    parser.read(root / ".importlinter")
    text = parser["importlinter:contract:layers"]["layers"]
    return [name.strip() for name in text.replace("|", "\n").splitlines() if name.strip()]


def in_order(root: Path, modules: list[Path]) -> list[Path]:
    """Modules in the order of the layers where they are layers themselves, else by name."""
    known = {root / "cjepa_dist" / f"{name}.py": n for n, name in enumerate(layers(root))}
    return sorted(modules, key=lambda path: (known.get(path, 0), path))


def module_entry(root: Path, path: Path) -> Iterator[str]:
    """The lines of a module, at most WIDTH columns each."""
    words = f"- `{path.relative_to(root)}`: {first_line(path)}".split(" ")
    line = words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > WIDTH:
            yield line
            line = f"  {word}"
        else:
            line += f" {word}"
    yield line


def first_line(path: Path) -> str:
    """The first line of a module's docstring. Exits with code 1 where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise SystemExit(f"error: {path} has no docstring; its first line goes into {PAGE}")
    return docstring.splitlines()[0].strip()


def main(arguments: list[str]) -> int:
    root = project_root()
    text, page = code_map(root), root / PAGE
    if arguments == ["--check"]:
        if page.is_file() and page.read_text() == text:
            return 0
        print(f"error: {PAGE} is not current; run python -m tools.code_map", file=sys.stderr)
        return 1
    if arguments:
        print("error: usage: python -m tools.code_map [--check]", file=sys.stderr)
        return 2
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
