"""Where the project's own files are, and how a config is found by its name.

a checkout              an installed wheel             what is in it
PROJECT/                cjepa_dist/_project/           slurm/ data_prep/ tools/ configs/
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from cjepa_dist.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]

# The folder of configs/ that holds the first argument of a command, by the name of its schema.
KIND_OF_SCHEMA = {
    "TrainWorldModel": "world_model",
    "TrainAloe": "aloe",
    "Simulate": "simulate",
    "Experiment": "experiment",
}


def project_root() -> Path:
    """The folder that holds slurm/, data_prep/, tools/ and configs/."""
    installed, checkout = PACKAGE / "_project", PACKAGE.parent
    if installed.is_dir():
        return installed
    if (checkout / "configs").is_dir() and (checkout / "slurm").is_dir():
        return checkout
    raise UserError(
        f"the folders configs/ and slurm/ are neither in {installed} nor in {checkout}:"
        " install the project again, with pip"
    )


def find_config(kind: str, name: str | Path) -> Path:
    """A file that exists is taken as it is; else NAME or NAME.yaml in configs/KIND/.

    `kind` is a folder of configs/: world_model, aloe, simulate, experiment, slurm or accelerate;
    "" looks in configs/ itself. A path from the project's folder, such as
    configs/aloe/full.yaml, is found from any folder. Raises UserError with the nearest names.
    """
    given = Path(os.path.expanduser(name))
    if is_readable(given):
        return given
    folder = project_root() / "configs" / kind
    for found in (folder / given, folder / f"{given}.yaml", project_root() / given):
        if is_readable(found):
            return found
    near = difflib.get_close_matches(given.stem, config_names(kind), n=3, cutoff=0.4)
    known = f"the nearest of configs/{kind}: " if near else f"configs/{kind} has "
    raise UserError(
        f"config file {name} does not exist; {known}{', '.join(near or config_names(kind))}"
    )


def config_names(kind: str) -> list[str]:
    """The names that `find_config` knows in configs/KIND/."""
    folder = project_root() / "configs" / kind
    paths = folder.rglob("*.yaml") if not kind else folder.glob("*.yaml")
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in paths)


def is_readable(path: Path) -> bool:
    """Whether something stands there that can be read: a file, also a pipe, but no folder."""
    return exists(path) and not path.is_dir()


def exists(path: Path) -> bool:
    """Whether something stands there; False for a name that is too long, or not to be searched."""
    try:
        return path.exists()
    except OSError:
        return False
