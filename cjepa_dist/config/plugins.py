"""Plugins: Python modules outside of this package that extend it when they are imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cjepa_dist.errors import UserError

PLUGINS_MEANING = "Python modules to import first, such as one that adds a graph estimator"


def import_plugins(names: Sequence[str]) -> None:
    """Import modules by name, from the current folder too; each is imported once.

    A module extends the package with decorators such as `causal.graph.register_estimator`. Raises
    UserError naming a module that cannot be imported, and the cause.
    """
    folder = str(Path.cwd())
    if names and folder not in sys.path:
        sys.path.append(folder)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(
                f"plugins: cannot import the module {name!r} ({type(error).__name__}: {error});"
                f" looked for in {folder} and where Python finds its modules"
            ) from error
