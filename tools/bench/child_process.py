"""Run an entry point in a new process, alone or under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys

from cjepa_dist.errors import UserError


def run_module(
    module: str, *arguments: str, processes: int = 0, environment: dict[str, str] | None = None
) -> None:
    """`python -m module arguments`; with `processes`, under torchrun.

    Raises UserError with the error line, or the last line, of one that fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    if processes:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command[2:3] = [*torchrun, "-m", module]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
        call = " ".join(command[1:])
        raise UserError(f"exit code {done.returncode}: python {call}: {reason}")
