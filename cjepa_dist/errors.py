"""The two kinds of trouble: what a user can mend (one line, exit code 2) and everything else (a traceback)."""


class UserError(Exception):
    """Bad input or a bad request. The message says what was wrong, where (file, shard, key, field) and what to do."""
