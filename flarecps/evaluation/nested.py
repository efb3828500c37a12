"""The mean difference of two methods over scans and trainings: scans nested in folds, seeds crossed with them.

A difference d of scan i and seed s of fold f is δ + scan_i + training_fs + rest_is. One training is judged on all scans
of its fold, so scans alone would make an interval too narrow: trainings differ, too. Mean squares of the two-way layout
within folds, and those between folds, estimate the variance of the mean; degrees of freedom are Satterthwaite's
(Biometrics Bulletin 2, 1946), as where several readers judge the same cases (Obuchowski & Rockette, Commun Stat 24,
1995). The labelled scans that all trainings learn from are taken as given: of other ones it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

from flarecps.evaluation.statistics import DECIMALS, Interval, holm


@dataclass(frozen=True)
class NestedMean:
    """A mean difference; interval and p (two-sided, that there is none) are None where they can't be known.

    ``scans`` are judged by ``seeds`` trainings each, of ``folds``; a single training says nothing of others.
    """

    mean: float
    interval: Interval | None
    p: float | None
    scans: int
    folds: int
    seeds: int

    @property
    def reach(self) -> float:
        """Half of the interval's width; 0 without one."""
        return (self.interval.high - self.interval.low) / 2 if self.interval else 0.0


@dataclass(frozen=True)
class Spread:
    """Standard deviations of differences: between scans, between trainings, and what neither explains."""

    scan: float
    training: float
    rest: float


@dataclass(frozen=True)
class _Squares:
    """Mean squares with their degrees of freedom; of 0 degrees where the layout has none."""

    scans: tuple[float, int]
    trainings: tuple[float, int]
    rest: tuple[float, int]
    folds: tuple[float, int]
    scans_of_a_fold: float


def nested_mean(folds: Sequence[np.ndarray], confidence: float = 0.95) -> NestedMean | None:
    """The mean over all scans of ``folds``, each an array (scans, seeds) of differences; None without a scan.

    A scan without a number for some seed is left out. One fold (a fixed test set) needs two seeds for an interval, one
    seed two folds.
    """
    whole = [fold for one in folds if (fold := one[np.isfinite(one).all(axis=1)]).size]
    if not whole:
        return None
    number, seeds = sum(map(len, whole)), whole[0].shape[1]
    mean = float(np.concatenate(whole).mean())
    found = _variance(_mean_squares(whole), seeds)
    interval = p = None
    if found is not None:
        error, freedom = (found[0] / (number * seeds)) ** 0.5, found[1]
        if error < 10.0**-DECIMALS:
            interval, p = Interval(mean, mean), float(abs(mean) < 10.0**-DECIMALS)
        else:
            reach = float(student.ppf((1 + confidence) / 2, freedom)) * error
            interval, p = Interval(mean - reach, mean + reach), float(2 * student.sf(abs(mean) / error, freedom))
    return NestedMean(mean, interval, p, number, len(whole), seeds)


def spread(folds: Sequence[np.ndarray]) -> Spread:
    """The standard deviations in ``folds``, as in `nested_mean`; negative estimates are 0. Needs two seeds."""
    squares, seeds = _mean_squares(folds), folds[0].shape[1]
    rest = squares.rest[0]
    scan = max(0.0, squares.scans[0] - rest) / seeds
    training = max(0.0, squares.trainings[0] - rest) / squares.scans_of_a_fold
    return Spread(scan**0.5, training**0.5, rest**0.5)


def _mean_squares(folds: Sequence[np.ndarray]) -> _Squares:
    number, seeds = sum(map(len, folds)), folds[0].shape[1]
    centres = [fold.mean() for fold in folds]
    by_scan = [fold.mean(axis=1) - centre for fold, centre in zip(folds, centres, strict=True)]
    by_seed = [fold.mean(axis=0) - centre for fold, centre in zip(folds, centres, strict=True)]
    rest = [fold - centre - scan[:, None] - seed[None]
            for fold, centre, scan, seed in zip(folds, centres, by_scan, by_seed, strict=True)]  # fmt: skip
    mean = np.concatenate(folds).mean()

    def square(total: float, freedom: int) -> tuple[float, int]:
        return (float(total) / freedom if freedom else 0.0), freedom

    within = number - len(folds)
    return _Squares(
        square(seeds * sum((one**2).sum() for one in by_scan), within),
        square(sum(len(fold) * (one**2).sum() for fold, one in zip(folds, by_seed, strict=True)),
               len(folds) * (seeds - 1)),
        square(sum((one**2).sum() for one in rest), within * (seeds - 1)),
        square(seeds * sum(len(fold) * (one - mean) ** 2 for fold, one in zip(folds, centres, strict=True)),
               len(folds) - 1),
        number / len(folds),
    )  # fmt: skip


def _variance(of: _Squares, seeds: int) -> tuple[float, float] | None:
    """What the mean's variance is times scans × seeds, and its degrees of freedom; None where no training is repeated.

    Within folds (scans + trainings - rest) and between them the same is estimated; both are pooled, and never less than
    the scans alone say.
    """
    parts = []
    if seeds > 1:
        squares = [(value, freedom) for value, freedom in (of.scans, of.trainings, of.rest) if freedom]
        within = max(of.scans[0] + of.trainings[0] - of.rest[0], of.scans[0], of.trainings[0])
        doubt = sum(value**2 / freedom for value, freedom in squares)
        parts.append((within, within**2 / doubt if doubt else float(of.trainings[1])))
    if of.folds[1]:
        parts.append((of.folds[0], float(of.folds[1])))
    if not parts:
        return None
    freedom = sum(one for _, one in parts)
    return max(sum(value * one for value, one in parts) / freedom, of.scans[0]), freedom


@dataclass(frozen=True)
class Judgement:
    """A difference from the baseline, and its p by Holm over all methods judged together."""

    difference: NestedMean
    p_holm: float | None
    level: float = 0.05

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart", "not known"]:
        """What may be said: of a difference by chance "better" comes in half of ``level`` of all studies, or fewer."""
        if self.p_holm is None:
            return "not known"
        if self.p_holm >= self.level:
            return "not told apart"
        return "better" if self.difference.mean > 0 else "worse"


def judge(differences: Sequence[Sequence[np.ndarray]], confidence: float = 0.95) -> list[Judgement | None]:
    """Several methods held against one baseline, each by its folds' differences; None for one without a scan."""
    found = [nested_mean(folds, confidence) for folds in differences]
    corrected = holm([one.p if one else None for one in found])
    return [Judgement(one, p, 1 - confidence) if one else None for one, p in zip(found, corrected, strict=True)]
