"""Read a released checkpoint without running code, and find the one model in it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cjepa_dist.errors import UserError

C_JEPA, ALOE = "C-JEPA", "ALOE"
# A parameter that only this model has.
DISTINCTIVE_PARAMETERS = {"time_pos_embed": C_JEPA, "q_in_proj.weight": ALOE}
MAX_DEPTH = 4  # levels of nested dicts that are searched


def read_file(path: str) -> Mapping[Any, Any]:
    """The content of a torch.save file.

    Raises UserError if the file is missing, damaged or no dict, or if it needs code to be read:
    the code is named and does not run.
    """
    try:
        with warnings.catch_warnings():  # torch warns about old protocols
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"source={path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} {explain_unreadable(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def explain_unreadable(error: Exception) -> str:
    """Why torch.load failed, in one line.

    The first lines of its own message advise loading without `weights_only`, so they are left out.
    """
    if not isinstance(error, pickle.UnpicklingError):
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    elif needs := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"needs {needs[1]}: only tensors and plain containers are read, and nothing was run; "
            "save only its state_dict() where its code is installed"
        )
    else:
        fault = re.search(r"WeightsUnpickler error: (.+)", str(error))
        reason = fault[1] if fault else "damaged"
    return f"is not a readable torch.save file: {reason:.200}"


def named_tensors(
    content: Mapping[Any, Any], prefix: str = "", depth: int = MAX_DEPTH
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts by their dotted names."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping) and depth:
            yield from named_tensors(value, f"{prefix}{key}.", depth - 1)


def find_model(
    state: Mapping[str, Tensor], source: str, wanted: str = ""
) -> tuple[str, str, dict[str, Tensor]]:
    """(kind, prefix, parameters without the prefix) of the one model in the file `source`.

    `wanted` is the prefix to take, "." for no prefix, "" for the only model there is. Raises
    UserError if there is no model at it, or several to choose from.
    """
    kinds = {
        key.removesuffix(name): kind
        for name, kind in DISTINCTIVE_PARAMETERS.items()
        for key in state
        if key == name or key.endswith(f".{name}")
    }  # by prefix
    stripped = wanted.strip(".")
    candidates = [stripped and f"{stripped}."] if wanted else list(kinds)
    options = ", ".join(f"prefix={prefix.removesuffix('.') or '.'}" for prefix in kinds)
    if len(candidates) > 1:
        raise UserError(f"{source} holds several models: choose one of {options}")
    if not candidates or candidates[0] not in kinds:
        examples = f"its tensors: {', '.join(list(state)[:3]) or 'none'}"
        where = f" at prefix={wanted}" if wanted else ""
        raise UserError(
            f"{source} has neither time_pos_embed (C-JEPA) nor q_in_proj.weight (ALOE){where}; "
            + (f"models are at {options}" if kinds else examples)
        )
    prefix = candidates[0]
    # A copy inside, say ema.* beside the top level's, belongs to another model.
    others = tuple(other for other in kinds if other != prefix and other.startswith(prefix))
    parameters = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.startswith(others)
    }
    return kinds[prefix], prefix, parameters
