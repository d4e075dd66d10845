"""Calls to Slurm's own commands: squeue, sacct, sinfo, scontrol, scancel."""

from __future__ import annotations

import subprocess
import sys
import time

from cjepa_dist.errors import UserError


class SlurmError(UserError):
    """A Slurm command failed: no answer is not the same as an empty answer."""


def ask_slurm(*command: str, attempts: int = 1) -> str:
    """Output of a Slurm command; each further attempt waits a second longer than the one before.

    Prints a warning for each failure but the last. Raises SlurmError for that one.
    """
    for attempt in range(1, attempts + 1):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            message = str(error)
        else:
            if done.returncode == 0:
                return done.stdout.strip()
            message = " ".join(done.stderr.split())
        if attempt == attempts:
            break
        print(f"warning: {' '.join(command)}: {message}", file=sys.stderr, flush=True)
        time.sleep(attempt)
    raise SlurmError(f"Slurm does not answer: {' '.join(command)}: {message}; try again later")


def run_slurm_command(*command: str, attempts: int = 1) -> str:
    """The same, but empty, with a warning, where the last attempt fails.

    It may fail for good (a cluster may keep no accounts), or because the controller is busy.
    """
    try:
        return ask_slurm(*command, attempts=attempts)
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
        return ""
