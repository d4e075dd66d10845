"""Errors that a user can correct, and the exit codes of all commands.

A UserError ends a command with one line and exit code 2, and so does what the file system refuses
for a reason that a user can change; any other error is a traceback.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # by Ctrl-C, as shells count: 128 + SIGINT
EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75: stopped by a signal; the same command goes on
EXIT_HUNG = os.EX_SOFTWARE  # 70: no step was finished for too long
EXIT_LOCK_LOST = os.EX_SOFTWARE  # 70: another process has taken the run directory over

# user:password@ of a URL; the last @ before the path ends it.
URL_SECRET = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"]*@")

# A word of a user that fills the terminal says no more than its ends.
LONG_WORD = re.compile(r"(\S{200})\S{200,}(\S{100})")

# What to do where the file system refuses a name that the user gave.
ADVICE = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EACCES: "ask for the permission, or choose another place",
    errno.EPERM: "ask for the permission, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "a part of its path is a file: choose another place",
    errno.EISDIR: "give a file",
    errno.EEXIST: "choose another name, or remove what is there",
    errno.ELOOP: "a link there leads to itself: remove it",
    errno.EILSEQ: "that file system does not take this name: choose another one",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "this machine has too many open files: close some programs",
}


class UserError(Exception):
    """Bad input or a bad request: what was wrong, where (file, shard, key, field), what to do.

    Its message never holds a password of a URL, nor all of a very long word. `exit_code` is that of
    a command which it ends.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(LONG_WORD.sub(r"\1...\2", without_secrets(message)))


class ContentError(UserError):
    """Whole bytes that hold something else than they should: to read them again does not help."""


def without_secrets(text: str, shown: str = "***@") -> str:
    """A text with `shown` in the place of user:password@ in its URLs."""
    return URL_SECRET.sub(lambda found: found[1] + shown, text)


def one_line(text: str) -> str:
    """A text for a terminal: line breaks are spaces, control characters and the like escaped."""
    text = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe_refusal(error: OSError) -> str:
    """What the file system refused, as the message of a UserError; "" for any other failure."""
    if error.errno not in ADVICE or (error.filename is None and error.errno != errno.EMFILE):
        return ""
    name = "a file" if error.filename is None else os.fsdecode(error.filename)
    return f"{name}: {error.strerror}; {ADVICE[error.errno]}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """A UserError inside the block ends the process: one line on stderr, its exit code, mostly 2.

    So does Ctrl-C, with exit code 130.
    """
    code = EXIT_USER_ERROR
    try:
        yield
    except UserError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        if not (message := describe_refusal(error)):
            raise
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    else:
        return
    print(f"error: {without_secrets(one_line(message))}", file=sys.stderr)
    sys.exit(code)
