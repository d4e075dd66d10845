"""Errors that a user can correct, and the exit codes of all commands.

A UserError ends a command with one line and exit code 2; any other error is a traceback.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75: stopped by a signal; the same command goes on
EXIT_HUNG = os.EX_SOFTWARE  # 70: no step was finished for too long
EXIT_LOCK_LOST = os.EX_SOFTWARE  # 70: another process has taken the run directory over


class UserError(Exception):
    """Bad input or a bad request: what was wrong, where (file, shard, key, field), what to do."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """A UserError inside the block ends the process: one line on stderr, exit code 2."""
    try:
        yield
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
