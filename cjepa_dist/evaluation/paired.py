"""Is one way of training better than another? Pairs of runs, over seeds and videos together.

    (sum, count) of every seed and video, of an arm and of its reference, (N, V, 2) each
        ──draw seeds ┐
        ──draw videos┴──> ratio or difference of pooled means ──> interval, p
        ──> better | worse | no difference | not known

Seeds and videos are crossed: every run is read on the same videos. So each is drawn with
replacement on its own, a pair keeps its seed and its video, and the two deviations are added. A
bootstrap of a few seeds is too narrow: its deviations are widened to those of Student's t with N -
1 degrees of freedom. On made-up pairs of six runs whose seeds alone differ, 18 % of arms without a
difference were said to have one before that.

"No difference" is a finding and not the lack of one: both one-sided tests against a margin that was
given beforehand reject (TOST, Schuirmann 1987), which is that the 90 % interval lies within it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from cjepa_dist.errors import UserError

# With six pairs all differences have one sign by chance in 2 of 2^6 cases: below 5 % (sign test).
MIN_PAIRS = 6
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """An arm against its reference on one measure, in percent of it or in points.

    `low`, `high`: 95 %; `inner_low`, `inner_high`: 90 %, for the test of no difference. `p`: two
    sided, that there is a difference. `by_seed`: of each pair.
    """

    difference: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    p: float
    by_seed: list[float]


def compare_pairs(
    arm: np.ndarray, reference: np.ndarray, *, percent: bool, draws: int = 10_000, seed: int = 0
) -> Comparison:
    """`arm`, `reference` (N, V, 2): sum and count of seed n and video v; row n of both is a pair.

    `percent`: 100 (arm / reference - 1) of the pooled means; otherwise 100 (arm - reference), the
    difference of two shares in points. With one pair only videos are drawn. Raises UserError where
    the shapes differ, or where nothing is counted.
    """
    if arm.shape != reference.shape or arm.ndim != 3:
        raise UserError(
            f"pairs must have the same seeds and videos; got {arm.shape} and {reference.shape}"
        )
    if not (arm[..., 1].sum(axis=1) > 0).all() or not (reference[..., 1].sum(axis=1) > 0).all():
        raise UserError("a run has no object or question of this kind: nothing to compare")
    seeds = len(arm)
    generator = np.random.default_rng(seed)
    whole = change(pooled(arm.sum(axis=0)), pooled(reference.sum(axis=0)), percent)

    def deviations(axis: int) -> np.ndarray:
        """(draws,) of the change when seeds (0) or videos (1) are drawn, without `whole`."""
        count = arm.shape[axis]
        drawn = generator.multinomial(count, np.full(count, 1 / count), draws).astype(float)
        means = []
        for side in (arm, reference):
            total, number = (drawn @ side.sum(axis=1 - axis)).T
            means.append(total / np.where(number > 0, number, np.nan))
        return np.asarray(change(means[0], means[1], percent) - whole)

    drawn = whole + deviations(1)
    if seeds > 1:
        drawn = drawn + t_factor(seeds) * deviations(0)
    drawn = drawn[np.isfinite(drawn)]
    low, inner_low, inner_high, high = np.quantile(drawn, [0.025, 0.05, 0.95, 0.975])
    # One more draw on either side: p is never 0, and 10,000 draws show no p below 0.0002.
    below = (np.count_nonzero(drawn <= 0) + 1) / (len(drawn) + 1)
    above = (np.count_nonzero(drawn >= 0) + 1) / (len(drawn) + 1)
    by_seed = [
        float(change(pooled(one), pooled(other), percent)) for one, other in zip(arm, reference)
    ]
    return Comparison(
        float(whole),
        float(low),
        float(high),
        float(inner_low),
        float(inner_high),
        float(min(1.0, 2 * min(below, above))),
        by_seed,
    )


def t_factor(count: int) -> float:
    """What widens the deviations of a bootstrap of `count` values to a t interval of 95 %."""
    quantiles = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    return float(quantiles * np.sqrt(count / (count - 1)))


def change(value: np.ndarray, reference: np.ndarray, percent: bool) -> np.ndarray:
    return 100 * (value / reference - 1) if percent else 100 * (value - reference)


def pooled(values: np.ndarray) -> np.ndarray:
    """(V, 2) of (sum, count) -> () mean over all videos."""
    return np.asarray(values[:, 0].sum() / values[:, 1].sum())


def holm(p_values: list[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979), in the same order."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdict(found: Comparison, corrected_p: float, *, margin: float, lower_is_better: bool) -> str:
    """What may be said of an arm: see the top of this file. `corrected_p`: see `holm`."""
    if len(found.by_seed) < MIN_PAIRS:
        return f"no claim: {len(found.by_seed)} of {MIN_PAIRS} pairs"
    if corrected_p < LEVEL and not found.low <= 0 <= found.high:
        return "better" if (found.difference < 0) == lower_is_better else "worse"
    if -margin < found.inner_low and found.inner_high < margin:
        return f"no difference (within {margin:g})"
    return "not known"
