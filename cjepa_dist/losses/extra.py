"""Losses that a user adds from outside the package, by name.

    @register_loss("smooth")
    def smooth(predictor, windows, prediction, hidden): ...     -> (B,), one number a window

    python -m cjepa_dist.train_world_model ... plugins=[my_module] extra_losses.smooth=0.1

The mean over the windows of the global batch, times its weight, joins the loss: since every rank
and pass has as many windows, that is exact under data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cjepa_dist.errors import UserError

ExtraLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
EXTRA_LOSSES: dict[str, ExtraLoss] = {}


def register_loss(name: str) -> Callable[[ExtraLoss], ExtraLoss]:
    """Make a function known as `extra_losses.<name>`.

    It gets the predictor, the windows (B, T, S, D), the prediction of all their frames
    (B, T, S, D) with gradients, and which slots were hidden (B, S) bool; it returns (B,).
    """

    def register(function: ExtraLoss) -> ExtraLoss:
        EXTRA_LOSSES[name] = function
        return function

    return register


def extra_loss(
    name: str, predictor: nn.Module, windows: Tensor, prediction: Tensor, hidden: Tensor
) -> Tensor:
    """The mean of a registered loss over a batch (). Raises UserError for an unknown name."""
    if name not in EXTRA_LOSSES:
        known = ", ".join(EXTRA_LOSSES) or "none"
        raise UserError(
            f"extra_losses.{name}: no loss of this name is registered (there are: {known}); "
            "name the module that registers it in plugins=[...]"
        )
    return EXTRA_LOSSES[name](predictor, windows, prediction, hidden).mean()
