"""Weights of a released checkpoint, found by the name of one parameter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cjepa_dist.errors import UserError


def find_weights(
    state_dict: Mapping[str, Tensor], name: str, model: str
) -> tuple[str, dict[str, Tensor]]:
    """(prefix, weights without it) of the model to which the parameter `name` belongs.

    Keys may carry a common prefix, where the model is a part of a larger one. Raises UserError,
    naming `model`, where there is no such parameter.
    """
    prefixes = [key.removesuffix(name) for key in state_dict if key.endswith(name)]
    if not prefixes:
        raise UserError(f"this is not a released {model}: it has no parameter {name}")
    size = len(prefixes[0])
    found = {key[size:]: value for key, value in state_dict.items() if key.startswith(prefixes[0])}
    return prefixes[0], found
