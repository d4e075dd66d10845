"""The command line of an entry point: parse, run, leave with the right exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from cjepa_dist.config import locate
from cjepa_dist.config.fields import MISSING, default_of, leaf_fields, range_text
from cjepa_dist.config.merge import ConfigT, build, flatten, read_pairs, read_yaml
from cjepa_dist.errors import UserError, exit_on_user_error

# The key of key=value: a name, perhaps with further names behind dots. A path that holds a `=` is
# none of these, since it has a `/` before it, or begins otherwise.
KEY = re.compile(r"([A-Za-z_]\w*)(\.[^/=]+)?=", re.ASCII)

# pipe:COMMAND of this process's own arguments: only these are run (data/format/storage.py).
given_commands: set[str] = set()


def launch(
    schema: type[ConfigT], main: Callable[[ConfigT], int | None], argv: Sequence[str] | None = None
) -> typing.NoReturn:
    """Parse, run, and leave: exit code of `main` (None = 0), or 2 and one line for a UserError."""
    show_any_name()
    with exit_on_user_error():
        config = parse(schema, sys.argv[1:] if argv is None else argv)
        code = 0 if config is None else main(config) or 0
    sys.exit(code)


def show_any_name() -> None:
    """Let every file name be printed, also one that is no text in the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(ValueError, OSError):  # closed
            sys.stdout.reconfigure(errors="backslashreplace")


def parse(schema: type[ConfigT], argv: Sequence[str]) -> ConfigT | None:
    """`[CONFIG.yaml] key=value ...` -> a checked instance; None after `--help`.

    Raises UserError naming the field.
    """
    if "--help" in argv or "-h" in argv:
        print(usage(schema))
        return None
    files, pairs = split_arguments(argv, typing.get_type_hints(schema))
    if len(files) > 1 or any(f.startswith("-") for f in files):
        raise UserError(
            f"arguments are [CONFIG.yaml] key=value ...; got {' '.join(files)!r}; see --help"
        )
    kind = locate.KIND_OF_SCHEMA.get(schema.__name__)
    paths = [locate.find_config(kind, f) if kind else f for f in files]
    config = build(schema, *(read_yaml(path) for path in paths), read_pairs(pairs))
    texts = (value for _, value in flatten(dataclasses.asdict(config)) if isinstance(value, str))  # type: ignore[call-overload]
    given_commands.update(text for text in texts if text.startswith("pipe:"))
    return config


def split_arguments(
    argv: Sequence[str], fields: typing.Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """(paths, key=value pairs). A path may hold a `=`: `./a=b.yaml`, `runs/lr=3/config.yaml`.

    What could be both is a pair, unless something has that name and it begins with no field.
    """
    pairs = []
    for arg in argv:
        key = KEY.match(arg)
        if key and (key[1] in fields or not locate.exists(Path(arg))):
            pairs.append(arg)
    return [arg for arg in argv if arg not in pairs], pairs


def usage(schema: type) -> str:
    lines = [
        (schema.__doc__ or "").strip(),
        "",
        f"usage: {invocation()} [CONFIG.yaml] key=value ...",
        "",
    ]
    if kind := locate.KIND_OF_SCHEMA.get(schema.__name__):
        names = ", ".join(locate.config_names(kind))
        lines += [f"CONFIG.yaml is a file, or one of configs/{kind}: {names}", ""]
    for key, field in leaf_fields(schema):
        default = default_of(field)
        shown = "required" if default == MISSING else f"default {default!r}"
        notes = [shown, *([field.metadata["unit"]] if field.metadata["unit"] else [])]
        if text := range_text(field):
            notes.append(text)
        if field.metadata["choices"]:
            notes.append("one of " + ", ".join(field.metadata["choices"]))
        lines.append(f"  {key}\n      {field.metadata['meaning']} ({'; '.join(notes)})")
    return "\n".join(lines)


# Set by `cjepa NAME`, which runs the command's module in its own process.
program = ""


def invocation() -> str:
    """How this command was called: `cjepa simulate` or `python -m data_prep.simulate`."""
    return program or f"python -m {module_name()}"


def as_invoked(text: str) -> str:
    """A help text that says `python -m MODULE`, with the command as it was called."""
    return text.replace(f"python -m {module_name()}", invocation())


def module_name() -> str:
    """The module that is running as a program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
