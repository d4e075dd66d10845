"""Calls to Slurm's own commands: squeue, sacct, sinfo, scontrol, scancel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from cjepa_dist.errors import UserError

EXIT_NO_ANSWER = 3  # of a command that needs an answer of Slurm and gets none
TIMEOUT_S = 60.0  # for one call; a busy controller may take half of it


class SlurmError(UserError):
    """A Slurm command failed or hung: no answer is not the same as an empty answer."""

    exit_code = EXIT_NO_ANSWER


class SlurmMissing(SlurmError):
    """This machine, or this container, does not have Slurm's commands."""


def call_slurm(*command: str) -> str:
    """Output of a Slurm command.

    Raises SlurmMissing where there is no such command, SlurmError where it fails or hangs.
    """
    line = " ".join(command)
    try:
        # A session of its own: what hangs may be the child of a site's wrapper script.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SlurmMissing(
            f"no {command[0]} on this machine, so nothing is known of the jobs: go to a login node"
            " of the cluster"
        ) from None
    except OSError as error:
        raise SlurmError(f"{line}: {error.strerror}") from error
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SlurmError(
                    f"Slurm does not answer: {line}: nothing in {TIMEOUT_S:g} s; try again later"
                ) from None
            raise
    if process.returncode:
        said = " ".join(err.split())
        raise SlurmError(f"Slurm does not answer: {line}: {said}; try again later")
    return out.strip()


def ask_slurm(*command: str, attempts: int = 1) -> str:
    """The same, tried again; each further attempt waits a second longer than the one before.

    Prints a warning for each failure but the last. Raises SlurmError for that one, and SlurmMissing
    at once.
    """
    for attempt in range(1, attempts):
        try:
            return call_slurm(*command)
        except SlurmMissing:
            raise
        except SlurmError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
        time.sleep(attempt)
    return call_slurm(*command)


def run_slurm_command(*command: str, attempts: int = 1) -> str:
    """The same, but empty, with a warning, where the last attempt fails.

    It may fail for good, or because the controller is busy.
    """
    try:
        return ask_slurm(*command, attempts=attempts)
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
        return ""
