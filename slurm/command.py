"""Entry points whose argument is a folder of runs: exit code of `main`, or 2 for a UserError."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from cjepa_dist.config.command_line import as_invoked
from cjepa_dist.errors import exit_on_user_error


def launch(main: Callable[[list[str]], int], usage: str | None) -> NoReturn:
    """Run `main` with the command line's arguments, and leave; `usage` is the text of --help."""
    if {"-h", "--help"} & set(sys.argv):
        print(as_invoked(usage or "").strip())
        sys.exit(0)
    with exit_on_user_error():
        code = main(sys.argv[1:])
    sys.exit(code)
