"""Cases in processes of their own, so that one that dies is a finding and the rest goes on."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from tools.fuzz.cases import Tally, run_cases
from tools.fuzz.readers import make_reader

CHUNK = 5000  # cases of a process
HANGS = 90.0  # s without a new case: it is in C code, which no signal handler interrupts


def run_reader(name: str, seed: int, numbers: range) -> Tally:
    """The cases of a reader, in processes of at most CHUNK; a process that dies is a finding."""
    tally, at = Tally(), numbers.start
    context = multiprocessing.get_context("spawn")
    while at < numbers.stop:
        ours, theirs = context.Pipe(duplex=False)
        chunk = range(at, min(numbers.stop, at + CHUNK))
        process = context.Process(target=work, args=(theirs, name, seed, chunk))
        process.start()
        theirs.close()
        reached, part = -1, None
        while part is None:
            if not ours.poll(HANGS):
                process.kill()
                break
            try:
                message = ours.recv()
            except EOFError:
                break
            if isinstance(message, int):
                reached = message
            else:
                part = message
        process.join()
        if part is None and reached < 0:
            raise RuntimeError(f"{name}: no case was begun")
        if part is None:
            tally.findings[reached] = f"it hangs or dies, exit code {process.exitcode}"
            at = reached + 1
        else:
            merge(tally, part)
            at = chunk.stop
    return tally


def merge(tally: Tally, part: Tally) -> None:
    tally.results += part.results
    tally.refusals += part.refusals
    tally.findings |= part.findings
    tally.slowest = max(tally.slowest, part.slowest)
    tally.most_memory = max(tally.most_memory, part.most_memory)


def work(pipe: Any, name: str, seed: int, numbers: range) -> None:
    """Says the number of each case before it, and sends the tally at the end."""
    with tempfile.TemporaryDirectory() as folder:
        reader = make_reader(name, Path(folder))
        pipe.send(run_cases(reader, seed, numbers, pipe.send))
    pipe.close()
