"""Look at run directories: `python -m tools.runs ls DIR | show RUN | compare RUN RUN ...`.

    ls         all runs under DIR: kind, steps, state, last loss, speed, last start
    show       one run: its command, config, newest metrics, checkpoints, skipped steps
    compare    the fields in which runs differ, and their last metrics side by side

Reads and changes nothing. The state of a run is one of:
    complete     it reached its last step
    running      a living process holds its lock
    stopped      by a signal or loop.stop_at_step, with a checkpoint: the same command continues it
    interrupted  otherwise: look at its log; the same command continues from its last checkpoint
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cjepa_dist.checkpoint.integrity import (
    checkpoint_path,
    checkpoint_steps,
    verify_checkpoint,
)
from cjepa_dist.config.command_line import as_invoked
from cjepa_dist.config.merge import flatten
from cjepa_dist.errors import UserError, exit_on_user_error
from cjepa_dist.runtime.files import read_json_lines

USAGE = "python -m tools.runs ls DIR | show RUN | compare RUN RUN ..."


@dataclass
class Run:
    """What a run directory holds.

    Raises UserError if `path` is not one, or if a file in it cannot be read.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.yaml")
        self.config = self.read("config.yaml", yaml.safe_load)
        if not isinstance(self.config, dict):
            raise UserError(f"{self.path / 'config.yaml'} must hold key: value pairs")
        self.environment: dict[str, Any] = self.read("environment.json", parse_mapping) or {}
        self.lines: list[dict[str, Any]] = [
            line for line in self.read_lines("metrics.jsonl") if is_step(line.get("step"))
        ]
        self.checkpoints = checkpoint_steps(self.path / "checkpoints")

    def read(self, name: str, parse: Any) -> Any:
        """A file's content, None if it is not there."""
        try:
            return parse((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.path / name} cannot be read: {' '.join(str(error).split())[:300]}"
            ) from error

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The mappings in a file of JSON lines; those that are garbled are left out, and said."""
        try:
            return [content for _, content in read_json_lines(self.path / name)]
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from error

    @property
    def kind(self) -> str:
        return "ALOE" if "aloe" in self.config else "world model"

    @property
    def step(self) -> int:
        """The newest step that is known to be done."""
        done = (self.read("done.json", parse_mapping) or {}).get("step")
        return max(
            [
                0,
                done if is_step(done) else 0,
                *self.checkpoints[-1:],
                *(line["step"] for line in self.lines[-1:]),
            ]
        )

    @property
    def steps(self) -> int | None:
        """Steps of the complete run; a length in epochs is known from the first checkpoint on."""
        if done := self.read("done.json", parse_mapping):
            return done["step"] if is_step(done.get("step")) else None
        meta = (
            self.read(f"checkpoints/step_{self.checkpoints[-1]:08d}/meta.json", parse_mapping)
            if self.checkpoints
            else None
        )
        return (self.config.get("loop") or {}).get("steps") or (meta or {}).get("steps")

    @property
    def state(self) -> str:
        if is_locked(self.path / ".lock"):
            return "running"
        if (self.path / "done.json").exists():
            return "complete"
        stop = (self.config.get("loop") or {}).get("stop_at_step")
        if (self.path / "resume.json").exists() or (
            stop and self.checkpoints and self.checkpoints[-1] == stop
        ):
            return "stopped"
        return "interrupted"

    def last(self, kind: str) -> dict[str, Any]:
        """The newest metrics of a kind, `train` or `val`; {} if there are none."""
        return next((line for line in reversed(self.lines) if line.get("kind") == kind), {})

    def fields(self) -> dict[str, Any]:
        """The config, flat."""
        return dict(flatten(self.config))


def parse_mapping(text: str) -> dict[str, Any]:
    """A JSON mapping. Raises ValueError for anything else."""
    if not isinstance(found := json.loads(text), dict):
        raise ValueError("it is no mapping")
    return found


def is_step(value: Any) -> bool:
    """Whether it can be the number of a step."""
    return type(value) is int and 0 <= value < 1 << 62


def is_locked(path: Path) -> bool:
    """Whether a living process trains in the folder.

    Tries a shared lock for a moment, so that two processes that look do not see each other.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def find_runs(folder: Path) -> list[Path]:
    """All run directories under `folder`, itself included; none inside another."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = []
    for place, inner, names in os.walk(folder):
        inner.sort()
        if "config.yaml" in names and ("environment.json" in names or "checkpoints" in inner):
            found.append(Path(place))
            inner.clear()
    return found


def list_runs(folder: Path) -> str:
    """A line a run; one that cannot be read says so in its line."""
    rows: list[tuple[str, ...]] = [("run", "kind", "step", "state", "loss", "samples/s", "started")]
    for path in find_runs(folder):
        name = str(path.relative_to(folder))
        try:
            run = Run(path)
            train = run.last("train")
            numbers = (
                format_value(train.get("loss")),
                format_value(train.get("samples_per_second")),
            )
            rows.append(
                (
                    name,
                    run.kind,
                    f"{run.step}/{run.steps or '?'}",
                    run.state,
                    *numbers,
                    str(run.environment.get("time", "-")),
                )
            )
        except UserError as error:
            rows.append((name, f"error: {error}", *[""] * 5))
    return align_columns(rows) if len(rows) > 1 else f"no run under {folder}"


def describe_run(path: Path) -> str:
    """Everything about one run."""
    run = Run(path)
    parts = [f"{path}: {run.kind}, step {run.step}/{run.steps or '?'}, {run.state}"]
    for name, words in ((".lock.json", "running"), ("resume.json", "stopped")):
        if run.state == words and (note := run.read(name, parse_mapping)):
            parts.append("  " + ", ".join(f"{key} {value}" for key, value in note.items()))
    if text := run.read("command.txt", str):
        parts += ["", "started by", indent(text)]
    machine = ("commit", "device", "engine", "processes", "threads", "python")
    parts += [
        "",
        *(f"{name}: {run.environment[name]}" for name in machine if name in run.environment),
    ]
    for kind in ("train", "val"):
        if line := run.last(kind):
            parts += [
                "",
                f"{kind}, step {line['step']}",
                align_columns([(f"  {k}", format_value(v)) for k, v in metrics_of(line).items()]),
            ]
    parts += ["", "checkpoints"]
    best = (run.read("checkpoints/best.json", parse_mapping) or {}).get("step")
    for step in run.checkpoints:
        verdict = checkpoint_verdict(checkpoint_path(path / "checkpoints", step))
        parts.append(f"  step {step}: {verdict}{', the best' if step == best else ''}")
    if not run.checkpoints:
        parts.append("  none")
    skipped = run.read_lines("skipped.jsonl")
    parts += [
        "",
        f"skipped steps: {len(skipped)}",
        *(f"  step {line.get('step')}, loss {line.get('loss')}" for line in skipped[-5:]),
    ]
    return "\n".join([*parts, "", "config", indent((path / "config.yaml").read_text())])


def checkpoint_verdict(path: Path) -> str:
    """Whether a checkpoint is good, damaged, or cannot be read by this user now."""
    try:
        fault = verify_checkpoint(path)
    except UserError as error:
        return f"UNREADABLE ({error})"
    return "good" if fault is None else f"DAMAGED ({fault})"


def compare_runs(paths: list[Path]) -> str:
    """What differs, one column a run."""
    runs = [Run(path) for path in paths]
    names = [str(path) for path in paths]
    fields = [run.fields() for run in runs]
    keys = sorted({key for found in fields for key in found} - {"run"})
    differ = [
        key
        for key in keys
        if len({json.dumps(found.get(key), default=str) for found in fields}) > 1
    ]
    rows = [
        ("field", *names),
        *((key, *(format_value(found.get(key)) for found in fields)) for key in differ),
    ]
    parts = ["no field differs" if not differ else align_columns(rows)]
    rows = [("last metrics", *names), ("state", *(run.state for run in runs))]
    for kind in ("train", "val"):
        lines = [run.last(kind) for run in runs]
        keys = list(dict.fromkeys(key for line in lines for key in metrics_of(line)))
        if keys:
            rows.append((f"{kind} step", *(format_value(line.get("step")) for line in lines)))
            rows += [
                (f"{kind} {key}", *(format_value(line.get(key)) for line in lines)) for key in keys
            ]
    return "\n".join([*parts, "", align_columns(rows)])


def metrics_of(line: dict[str, Any]) -> dict[str, Any]:
    """The metrics in a line of metrics.jsonl."""
    return {key: value for key, value in line.items() if key not in ("step", "kind")}


def format_value(value: Any) -> str:
    """A cell of a table."""
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def align_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows with left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def indent(text: str) -> str:
    """The text, two columns to the right."""
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


def main(argv: Sequence[str]) -> NoReturn:
    """Dispatch on the first argument; exit code 2 and one line for a UserError."""
    if argv and argv[0] in ("-h", "--help"):
        print(as_invoked(__doc__ or ""))
        sys.exit(0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is not an error
    with exit_on_user_error():
        match list(argv):
            case ["ls", folder]:
                print(list_runs(Path(folder)))
            case ["show", path]:
                print(describe_run(Path(path)))
            case ["compare", first, second, *rest]:
                print(compare_runs([Path(path) for path in (first, second, *rest)]))
            case _:
                raise UserError(f"usage: {as_invoked(USAGE)}")
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
