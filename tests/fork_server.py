"""Runs entry points as `python -m` or torchrun would, but without importing the libraries again.

    ForkServer ──{module, arguments, environments, output files}──> python -m tests.fork_server
               <── pids, and at the end an exit code ──────────────   └─fork─> the entry point,
                                                                              once an environment

The server has imported the libraries, and a fork of it starts at once: that saves 5 s of a
processor each. A fork has its own arguments, environment, cores, streams and exit code, and no
thread of torch was running before it. Tests that launch, kill or measure processes start real ones.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
IMPORTED = (  # no entry point is among them: these run anew
    "cjepa_dist.training.loop",
    "cjepa_dist.reporting.tensorboard_images",
    "torch._dynamo",
    "scipy.optimize",
    "sklearn.metrics",
    "matplotlib.pyplot",
)


class ForkServer:
    """A process that forks, started when it is first needed; `close` ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        module: str,
        *arguments: str,
        environment: dict[str, str],
        timeout: float,
        processes: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of `python -m module arguments`, with its output captured.

        With `processes`, as torchrun starts that many.
        """
        if self.process is None:
            own = [sys.executable, "-m", "tests.fork_server"]
            self.process = subprocess.Popen(
                own, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        store, environments = (
            torchrun_environments(processes, environment) if processes else (None, [environment])
        )
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            files, cores = {"out": out.name, "err": err.name}, list(os.sched_getaffinity(0))
            request = {
                "module": module,
                "arguments": arguments,
                "environments": environments,
                "cores": cores,
                **files,
            }
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            pids = self.read_answer(120)
            try:
                code = self.read_answer(timeout)
            except TimeoutError:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                self.read_answer(60)
                raise subprocess.TimeoutExpired(
                    [module, *arguments], timeout, out.read(), err.read()
                ) from None
            output = [stream.read().decode() for stream in (out, err)]
        del store
        return subprocess.CompletedProcess([module, *arguments], code, *output)

    def read_answer(self, timeout: float) -> Any:
        """The next line of the server. Raises TimeoutError."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def torchrun_environments(
    processes: int, environment: dict[str, str]
) -> tuple[Any, list[dict[str, str]]]:
    """What torchrun gives its workers: a store on a free port, and an environment for each."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return store, [
        {**environment, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(processes)
    ]


def serve_requests() -> dict[str, Any] | None:
    """Serve until the input ends, then return None; in a fork return its request at once."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # or the first collection copies all of it
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is not an answer
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        pids = []
        for environment in request.pop("environments"):
            if not (pid := os.fork()):
                os.close(answers)
                return {**request, "environment": environment}
            pids.append(pid)
        os.write(answers, json.dumps(pids).encode() + b"\n")
        os.write(answers, b"%d\n" % wait_for_exit_code(pids))
    return None


def wait_for_exit_code(pids: list[int]) -> int:
    """The exit code of the one process; of several 0 if all have it, else 1.

    As under torchrun, the first that fails ends the others.
    """
    left, codes, end = set(pids), [], None
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG if end else 0)
        if pid:
            left.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1] and end is None:
                end = time.monotonic() + 30
                for other in left:
                    os.kill(other, signal.SIGTERM)
        elif end and time.monotonic() > end:
            for other in left:
                os.kill(other, signal.SIGKILL)
        else:
            time.sleep(0.05)
    return codes[0] if len(pids) == 1 else int(any(codes))


def run_entry_point(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    cores: list[int],
    out: str,
    err: str,
) -> None:
    """Become `python -m module arguments`, with output to the files `out` and `err`."""
    os.sched_setaffinity(0, cores)
    for number, path in enumerate((os.devnull, out, err)):
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    known = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in known if folder and folder not in sys.path]
    sys.argv, sys.orig_argv = ["-m", *arguments], [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if request := serve_requests():
        run_entry_point(**request)
