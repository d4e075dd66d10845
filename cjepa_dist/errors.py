"""Errors that a user can correct, and the exit codes of all commands.

A UserError ends a command with one line and exit code 2; any other error is a traceback.
"""

import os

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75: stopped by a signal; the same command goes on
EXIT_HUNG = os.EX_SOFTWARE  # 70: no step was finished for too long
EXIT_LOCK_LOST = os.EX_SOFTWARE  # 70: another process has taken the run directory over


class UserError(Exception):
    """Bad input or a bad request: what was wrong, where (file, shard, key, field), what to do."""
