"""Has the world model collapsed, so that it predicts much the same slots whatever it sees?

A falling loss can hide it. Not a loss: metrics of a validation.

    prediction, truth ──collapse_moments──> sums over batches and ranks ──collapse_metrics──>
        predicted variance over the data's, effective rank of both
"""

from __future__ import annotations

import torch
from torch import Tensor


def collapse_moments(z: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Sums over the slots seen: count, sum z, sum x, sum z z', sum x x'; (1 + 2 D + 2 D D,).

    z, x (..., D): predicted and true slots; seen (...) bool. The sums are float64.
    """
    weight = seen.flatten().double()[:, None]
    a, b = (value.flatten(0, -2).double() * weight for value in (z, x))
    return torch.cat(
        [weight.sum()[None], a.sum(0), b.sum(0), (a.T @ a).flatten(), (b.T @ b).flatten()]
    )


def collapse_metrics(sums: Tensor) -> dict[str, float]:
    """Metrics from what `collapse_moments` returned, summed over batches and ranks.

    {} without a slot.
    - predicted_variance: of the predicted slots, over that of the true ones; near 0 is a collapse
    - effective_rank, effective_rank_data: exp of the entropy of the covariance's normalised
      eigenvalues, 1 to D; a rank below the data's is a collapse to fewer dimensions
    """
    sums = sums.cpu()
    dim = round(((2 * len(sums) - 1) ** 0.5 - 1) / 2)  # 1 + 2 D + 2 D D numbers
    count, z, x, zz, xx = sums.split([1, dim, dim, dim * dim, dim * dim])
    if not count > 0 or not sums.isfinite().all():
        return {}
    covariances = [
        square.view(dim, dim) / count - torch.outer(mean / count, mean / count)
        for mean, square in ((z, zz), (x, xx))
    ]
    predicted, true = (float(each.trace()) for each in covariances)
    ranks = [effective_rank(each) for each in covariances]
    return {
        "predicted_variance": predicted / max(true, 1e-12),
        "effective_rank": ranks[0],
        "effective_rank_data": ranks[1],
    }


def effective_rank(covariance: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of (D, D); 1 where nothing varies."""
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    if values.sum() <= 1e-12:
        return 1.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())
