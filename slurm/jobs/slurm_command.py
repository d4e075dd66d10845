"""Calls to Slurm's own commands: squeue, sacct, sinfo, scontrol, scancel."""

from __future__ import annotations

import subprocess
import sys
import time


def run_slurm_command(*command: str, attempts: int = 1) -> str:
    """Output of a Slurm command; after the last attempt empty, with a warning for each failure.

    It may fail for good (a cluster may keep no accounts), or because the controller is busy.
    """
    for attempt in range(attempts):
        time.sleep(attempt)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            message = str(error)
        else:
            if done.returncode == 0:
                return done.stdout.strip()
            message = " ".join(done.stderr.split())
        print(f"warning: {' '.join(command)}: {message}", file=sys.stderr, flush=True)
    return ""
