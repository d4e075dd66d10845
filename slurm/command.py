"""A command whose argument is a folder of runs: its exit code, or 2 and one line for a UserError."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from cjepa_dist.config.command_line import as_invoked
from cjepa_dist.errors import UserError


def launch(main: Callable[[list[str]], int], usage: str | None) -> NoReturn:
    if {"-h", "--help"} & set(sys.argv):
        print(as_invoked(usage or "").strip())
        sys.exit(0)
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = 2
    sys.exit(code)
