"""Paired statistics of two methods over the same cases: signed ranks, Holm's correction, bootstrap, counts.

Everything takes the differences case by case (method minus baseline), so a hard case weighs on both methods alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata, wilcoxon

DECIMALS = 9  # scores have 4 to 6: what differs later is the binary noise of subtraction, and ties must stay ties
MOST_EXACT = 200  # pairs up to which the signed ranks' distribution is counted out
FEWEST_PAIRS = 6  # of fewer no test of ranks can reach p < 0.05, whatever they are
RESAMPLES_AT_ONCE = 2_000_000  # drawn indices held in memory


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """In how many cases a method is better than the baseline, equal, and worse."""

    wins: int
    ties: int
    losses: int


def wilcoxon_p(differences: Sequence[float] | np.ndarray) -> float | None:
    """The two-sided p of Wilcoxon's signed-rank test that the differences lie evenly about 0; None without any.

    Zeros are left out (Wilcoxon's way), equal sizes share their mean rank. Up to ``MOST_EXACT`` pairs p is exact, with
    ties too (SciPy's is exact without ties only): of all 2ⁿ ways to sign the ranks, the share that is as far from the
    middle. Beyond, SciPy's normal approximation with its correction for ties. All zero: 1.

    >>> wilcoxon_p([0.1, 0.2, 0.3, 0.4])  # 2 of 16 ways to sign four ranks are as extreme
    0.125
    """
    rounded = np.round(np.asarray(differences, float), DECIMALS)
    if not rounded.size:
        return None
    signed = rounded[rounded != 0]
    n = signed.size
    if not n:
        return 1.0
    if n > MOST_EXACT:
        return float(wilcoxon(signed, method="asymptotic").pvalue)
    doubled = np.rint(2 * rankdata(np.abs(signed))).astype(int)  # mean ranks of ties are halves
    total, positive = int(doubled.sum()), int(doubled[signed > 0].sum())
    chance = np.zeros(total + 1)  # of a sum of positive ranks, when every rank is positive or not with chance 1/2
    chance[0] = 1.0
    for rank in doubled:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    tail = chance[: min(positive, total - positive) + 1].sum()  # the distribution is symmetric
    return float(min(1.0, 2 * tail))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p, in the order given; None stays None and does not count.

    The smallest of m is multiplied by m, the next by m - 1 …; none gets smaller than the one before, none exceeds 1.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    family = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for step, (p, place) in enumerate(family):
        reached = max(reached, min(1.0, p * (len(family) - step)))
        corrected[place] = reached
    return corrected


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """The bootstrap interval (bias-corrected and accelerated) of the mean difference; None for fewer than two cases.

    Cases are drawn with replacement, so both methods' scores of a case stay together. BCa rather than percentiles, as
    a few failed cases make differences skewed (Efron, J Am Stat Assoc 82, 1987). Equal differences: no width.
    """
    values = np.asarray(differences, float)
    n = values.size
    if n < 2:
        return None
    mean = float(values.mean())
    if np.ptp(values) < 10.0**-DECIMALS:
        return Interval(mean, mean)
    generator, at_once = np.random.default_rng(seed), max(1, RESAMPLES_AT_ONCE // n)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    tail = (1 - confidence) / 2
    noise = 1e-12  # the same cases summed in another order
    below = (np.count_nonzero(means < mean - noise) + np.count_nonzero(means <= mean + noise)) / (2 * resamples)
    bias = float(norm.ppf(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    left_out = (values.sum() - values) / (n - 1)
    away = left_out.mean() - left_out
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    towards = bias + norm.ppf([tail, 1 - tail])
    shares = norm.cdf(bias + towards / (1 - acceleration * towards))
    low, high = np.quantile(means, shares)
    return Interval(float(low), float(high))


def clearly_above(differences: Sequence[float] | np.ndarray) -> bool:
    """Whether a mean difference is more than chance: `FEWEST_PAIRS` or more, and a 95 % interval above 0.

    Differences that are not finite are left out.

    >>> clearly_above([0.1] * 6), clearly_above([0.1] * 5), clearly_above([0.1, -0.1] * 10)
    (True, False, False)
    """
    found = np.asarray(differences, float)
    found = found[np.isfinite(found)]
    if found.size < FEWEST_PAIRS or found.mean() <= 0:
        return False
    interval = bootstrap_interval(found)
    return interval is not None and interval.low > 0


def count_wins(differences: Sequence[float] | np.ndarray) -> Counts:
    """How often the difference is above 0, 0, and below.

    >>> count_wins([0.3 - 0.2 - 0.1, 0.5, -0.1, 0.2])
    Counts(wins=2, ties=1, losses=1)
    """
    rounded = np.round(np.asarray(differences, float), DECIMALS)
    return Counts(int((rounded > 0).sum()), int((rounded == 0).sum()), int((rounded < 0).sum()))
