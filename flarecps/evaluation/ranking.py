"""FLARE's ranking: per case a rank in each of five measures, then the weighted mean of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from flarecps.evaluation.statistics import DECIMALS


class Measure(NamedTuple):
    """One of the five measures, its weight, and whether more of it is better."""

    name: str
    weight: float
    more_is_better: bool


# Source: FLARE22's evaluation page; GPU and CPU count half each, so that efficiency weighs no more than accuracy.
FLARE_MEASURES = (
    Measure("DSC", 1.0, True),
    Measure("NSD", 1.0, True),
    Measure("Time", 1.0, False),
    Measure("AUC_GPU_Time", 0.5, False),
    Measure("AUC_CPU_Time", 0.5, False),
)


@dataclass(frozen=True)
class MethodRank:
    """One method: its place (equal scores share the better one), its score (mean rank, 1 best), and each mean rank."""

    method: str
    place: int
    score: float
    ranks: Mapping[str, float]


def rank_methods(methods: Sequence[str], values: Mapping[str, np.ndarray]) -> list[MethodRank]:
    """The standings, best first; ``values`` holds methods × cases for every measure, all of them numbers.

    Within a case and measure the best method has rank 1, and equal ones share their mean rank.

    >>> [one.score for one in rank_methods(["A", "B"], {m.name: np.array([[2.0], [1.0]]) for m in FLARE_MEASURES})]
    [1.5, 1.5]
    """
    weights = np.array([one.weight for one in FLARE_MEASURES])
    rounded = [np.round(values[one.name], DECIMALS) * (-1 if one.more_is_better else 1) for one in FLARE_MEASURES]
    means = rankdata(np.stack(rounded), axis=1).mean(axis=2)  # measures × methods
    scores = np.round(weights @ means / weights.sum(), DECIMALS)
    places = rankdata(scores, method="min")
    names = [one.name for one in FLARE_MEASURES]
    standings = [
        MethodRank(method, int(place), float(score), dict(zip(names, map(float, ranks), strict=True)))
        for method, place, score, ranks in zip(methods, places, scores, means.T, strict=True)
    ]
    return sorted(standings, key=lambda one: one.place)
