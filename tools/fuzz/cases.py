"""One case: a mutated input is read; what comes must be a result or one line for the user.

A case is a function of (seed, reader, number) alone, so that one number reproduces a finding.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjepa_dist.errors import UserError, describe_refusal, one_line
from tools.fuzz.readers import Reader

MOST_SECONDS = 20.0  # of CPU for one case; most take less than a thousandth of it
MOST_MEMORY = 900 << 20  # bytes by which one case may raise the memory of the process
MOST_MESSAGE = 1500  # characters of a line for the user, of which some are the path


class TooLongError(BaseException):
    """A case has taken more than its time. No Exception: readers turn those into UserErrors."""


@dataclass
class Tally:
    """What the cases of a reader came to: counts, and findings by the number of their case."""

    results: int = 0
    refusals: int = 0
    findings: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0  # seconds of CPU
    most_memory: int = 0  # bytes


@dataclass(frozen=True)
class Outcome:
    """`kind`: result, refusal or finding; `text`: the line, or what was found."""

    kind: str
    text: str
    seconds: float
    memory: int


def make_case(reader: Reader, seed: int, number: int) -> bytes:
    """The input of case `number`."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    return reader.mutate(rng, rng.choice(reader.seeds))


def run_case(reader: Reader, seed: int, number: int) -> Outcome:
    """Make one case, read it, and judge what comes."""
    content = make_case(reader, seed, number)
    path = reader.folder / reader.file.format(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    before = snapshot(reader.folder)
    began, memory = cpu_seconds(), reset_peak()
    kind, text = attempt(reader, path)
    seconds, memory = cpu_seconds() - began, max(0, peak() - memory)
    if kind != "finding":
        if seconds > MOST_SECONDS:
            kind, text = "finding", f"it takes {seconds:.1f} s"
        elif memory > MOST_MEMORY:
            kind, text = "finding", f"it takes {memory >> 20} MiB"
        elif not reader.writes and (
            path.read_bytes() != content or snapshot(reader.folder) != before
        ):
            kind, text = "finding", "it has changed its input"
    path.unlink(missing_ok=True)
    return Outcome(kind, text, seconds, memory)


def attempt(reader: Reader, path: Path) -> tuple[str, str]:
    try:
        with time_limit(MOST_SECONDS), contextlib.redirect_stdout(io.StringIO()):
            reader.read(path)
    except UserError as error:
        return judge_line(reader, path, str(error))
    except TooLongError:
        return "finding", f"it takes more than {MOST_SECONDS} s"
    except OSError as error:
        if message := describe_refusal(error):
            return judge_line(reader, path, message)
        return "finding", describe(error)
    except (Exception, SystemExit) as error:
        return "finding", describe(error)
    return "result", ""


def judge_line(reader: Reader, path: Path, message: str) -> tuple[str, str]:
    """A refusal, unless its line is too long or names neither the file nor what stands for it."""
    line = one_line(message)
    if len(line) > MOST_MESSAGE:
        return "finding", f"a line of {len(line)} characters: {line[:200]}"
    if not any(name in line for name in (path.name, *reader.names)):
        return "finding", f"a line that does not name {path.name}: {line[:300]}"
    return "refusal", line


def describe(error: BaseException) -> str:
    """The error and the last places of its traceback in this project."""
    places, trace = [], error.__traceback__
    while trace is not None:
        name = Path(trace.tb_frame.f_code.co_filename).name
        places.append(f"{name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:160]} at {' '.join(places[-4:])}"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooLongError after `seconds` of CPU; a machine that is busy with others does not matter."""

    def stop(*_: Any) -> None:
        raise TooLongError

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def reset_peak() -> int:
    """Let the peak of this process's memory begin anew; bytes that it has now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most bytes of memory since `reset_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def snapshot(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of what is there."""
    return sorted(
        (str(p), p.stat().st_size) for p in folder.rglob("*") if p.is_file() or p.is_symlink()
    )


def run_cases(
    reader: Reader, seed: int, numbers: range, begin: Callable[[int], object] = lambda number: None
) -> Tally:
    """Run the cases of a reader; `begin` is told the number of each one before it."""
    tally = Tally()
    for number in numbers:
        begin(number)
        add(tally, number, run_case(reader, seed, number))
    return tally


def add(tally: Tally, number: int, outcome: Outcome) -> None:
    if outcome.kind == "result":
        tally.results += 1
    elif outcome.kind == "refusal":
        tally.refusals += 1
    else:
        tally.findings[number] = outcome.text
    tally.slowest = max(tally.slowest, outcome.seconds)
    tally.most_memory = max(tally.most_memory, outcome.memory)
