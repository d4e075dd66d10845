"""Writes docs/reference/commands.md and config.md: every command and config field, from the schema.

python -m tools.reference_pages            write them
python -m tools.reference_pages --check    exit code 1 if one is not current; write nothing

cli.COMMANDS ──module──> schema ──fields──> commands.md
training, experiment and cluster schemas, headers of configs/ ──> config.md
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from cjepa_dist.cli import COMMANDS
from cjepa_dist.config import completion
from cjepa_dist.config.fields import default_of, leaf_fields, range_text
from cjepa_dist.config.locate import config_names, project_root
from cjepa_dist.config.schema import TrainAloe, TrainWorldModel
from slurm.experiment.schema import Cluster, Experiment
from tools.bench.__main__ import BENCHMARKS

FOLDER = Path("docs/reference")
WIDTH = 100
NOTE = "Made by `python -m tools.reference_pages` from the schema; do not edit.\n"
# Their fields are many and shared, so they have a page of their own.
ON_CONFIG_PAGE = {TrainWorldModel, TrainAloe, Experiment}
CONFIG_KINDS = {
    "simulate": "`cjepa simulate NAME`",
    "world_model": "`cjepa train-world-model NAME`",
    "aloe": "`cjepa train-aloe NAME`",
    "experiment": "`cjepa run NAME` and `cjepa submit NAME`",
    "slurm": "`cluster=NAME` of `cjepa submit`",
    "accelerate": "`accelerate launch --config_file FILE`",
}


def commands_page() -> str:
    """All commands in the order of the data, each with its options."""
    lines = [
        "# Commands",
        "",
        NOTE,
        "`cjepa COMMAND [CONFIG] key=value ...`: CONFIG is a file, or a name in `configs/`. Text",
        "is taken as it is, a list is `splits=[train,val]`, and `~` is the home folder in paths.",
        "The same text is printed by `cjepa COMMAND --help`.",
        "",
        *(
            item
            for name, command in COMMANDS.items()
            for item in bullet(f"[`cjepa {name}`](#cjepa-{name})", command.summary)
        ),
    ]
    for name, command in COMMANDS.items():
        lines += ["", f"## cjepa {name}", "", f"{sentence(command.summary)}", ""]
        lines += list(options_of(name, command.module, command.words))
    return "\n".join(lines).rstrip() + "\n"


def options_of(name: str, module: str, words: tuple[str, ...]) -> Iterator[str]:
    """What the section of a command says after its summary."""
    if name == "bench":
        for bench, (schema, _) in BENCHMARKS.items():
            yield from ["", f"### cjepa bench {bench}", ""]
            yield from schema_text(schema)
    elif not module:  # completion
        yield f"`cjepa {name} {'|'.join(words)}`"
    elif (found := schema_of(module)) is None:
        text = ast.get_docstring(completion.parse(module) or ast.Module([], [])) or ""
        yield from ["```text", *text.replace(f"python -m {module}", f"cjepa {name}").splitlines()]
        yield "```"
    elif found in ON_CONFIG_PAGE:
        yield from wrapped((found.__doc__ or "").split("\n\n")[0])
        yield from ["", f"Fields: [{anchor_title(found)}](config.md#{anchor_of(found)})."]
    else:
        yield from schema_text(found)


def schema_of(module: str) -> type | None:
    """The schema that a command's module gives to `launch`; None where it has none."""
    tree = completion.parse(module)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree else []
    for call in calls:
        name = completion.dotted(call.args[0]) if call.args else ""
        if name and completion.dotted(call.func).endswith("launch"):
            value: Any = importlib.import_module(importable(module))
            for part in name.split("."):
                value = getattr(value, part)
            return value if isinstance(value, type) else None
    return None


def importable(module: str) -> str:
    """A package that is run as a command has its schema in its __main__."""
    folder = project_root().joinpath(*module.split("."))
    return f"{module}.__main__" if folder.is_dir() else module


def schema_text(schema: type) -> Iterator[str]:
    """The first paragraph of a schema's docstring, and its fields."""
    yield from [*wrapped((schema.__doc__ or "").split("\n\n")[0]), ""]
    for key, field in leaf_fields(schema):
        yield from field_entry(key, field)


def field_entry(key: str, field: dataclasses.Field[Any]) -> list[str]:
    """One field: its key, default, meaning, unit and allowed values."""
    default = default_of(field)
    shown = "required" if default == MISSING else f"default `{as_yaml(default)}`"
    notes = [shown, *([field.metadata["unit"]] if field.metadata["unit"] else [])]
    if text := range_text(field):
        notes.append(text)
    if field.metadata["choices"]:
        notes.append("one of " + ", ".join(f"`{choice}`" for choice in field.metadata["choices"]))
    return bullet(f"`{key}`", f"{escaped(field.metadata['meaning'])} ({'; '.join(notes)})")


def as_yaml(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_yaml, value))}]"
    return '""' if value == "" else str(value)


def escaped(text: str) -> str:
    """Text without what Markdown would take for a tag, a link or emphasis; code stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<\[\]])", r"\\\1", p) for p in parts)


def config_page() -> str:
    """Fields of training, experiments and clusters, and the configs that come with the project."""
    lines = ["# Config", "", NOTE]
    lines += list(
        wrapped(
            "A command reads at most one YAML file, then `key=value`. Keys with dots are sections"
            " of the file. Unknown keys, wrong types and wrong values are refused before anything"
            " starts."
        )
    )
    lines += ["", "## Configs by name", ""]
    for kind, used in CONFIG_KINDS.items():
        lines += [f"`configs/{kind}`, for {used}:", ""]
        for name in config_names(kind):
            lines += bullet(f"`{name}`", header_of(kind, name))
        lines.append("")
    shared = {section for section, _ in sections(TrainAloe)} & {
        section for section, _ in sections(TrainWorldModel)
    }
    trainings: tuple[type, ...] = (TrainWorldModel, TrainAloe)
    for schema in trainings:
        lines += ["", f"## {anchor_title(schema)}", "", *wrapped(schema.__doc__ or ""), ""]
        for key, field in leaf_fields(schema):
            if "." not in key:
                lines += field_entry(key, field)
        for section, inner in sections(schema):
            if section not in shared:
                lines += section_text(section, inner)
    lines += ["", "## Both trainings"]
    for section, inner in sections(TrainWorldModel):
        if section in shared:
            lines += section_text(section, inner)
    runs: tuple[type, ...] = (Experiment, Cluster)
    for schema in runs:
        lines += ["", f"## {anchor_title(schema)}", "", *schema_text(schema)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def sections(schema: type) -> list[tuple[str, type]]:
    """The fields of a schema that are sections."""
    hints = typing.get_type_hints(schema)
    names = [field.name for field in dataclasses.fields(schema)]
    return [(name, hints[name]) for name in names if dataclasses.is_dataclass(hints[name])]


def section_text(section: str, schema: type) -> list[str]:
    lines = ["", f"### {section}", "", *wrapped(schema.__doc__ or ""), ""]
    for key, field in leaf_fields(schema, f"{section}."):
        lines += field_entry(key, field)
    return lines


def anchor_title(schema: type) -> str:
    """The heading of a schema on the config page: its command, or what the file describes."""
    commands = [name for name, c in COMMANDS.items() if c.module and schema_of(c.module) is schema]
    return " and ".join(f"cjepa {name}" for name in commands) or schema.__name__


def anchor_of(schema: type) -> str:
    return anchor_title(schema).lower().replace(" ", "-")


def header_of(kind: str, name: str) -> str:
    """The first sentence of a config's header."""
    text = (project_root() / "configs" / kind / f"{name}.yaml").read_text(encoding="utf-8")
    comment = re.match(r"(?:#.*\n)+", text)
    words = (
        " ".join(re.sub(r"^# ?", "", line) for line in comment[0].splitlines()) if comment else ""
    )
    return escaped(re.split(r"(?<=[.?]) (?=[A-Z`])", words)[0])


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def bullet(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"- {name}: {' '.join(text.split())}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped(text: str) -> list[str]:
    """A paragraph in lines."""
    return textwrap.wrap(escaped(" ".join(text.split())), WIDTH, break_on_hyphens=False)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("error: usage: python -m tools.reference_pages [--check]", file=sys.stderr)
        return 2
    folder, current = project_root() / FOLDER, True
    for name, text in (("commands.md", commands_page()), ("config.md", config_page())):
        page = folder / name
        if not arguments:
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            command = "python -m tools.reference_pages"
            print(f"error: {FOLDER / name} is not current; run {command}", file=sys.stderr)
            current = False
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
