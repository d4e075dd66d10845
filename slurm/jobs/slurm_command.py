"""Calls to Slurm's own commands: squeue, sacct, scontrol, scancel."""

from __future__ import annotations

import subprocess
import sys
import time


def run_slurm_command(*command: str) -> str:
    """Output of a Slurm command; asked three times, as a busy controller may not answer, then empty."""
    for attempt in range(3):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        print(f"{' '.join(command)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        time.sleep(attempt)
    return done.stdout.strip()
