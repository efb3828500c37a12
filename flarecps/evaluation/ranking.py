"""FLARE's ranking: per case a rank in each of five measures, then the weighted mean of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from flarecps.evaluation.statistics import DECIMALS


@dataclass(frozen=True)
class Measure:
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


def rank_methods(
    methods: Sequence[str], values: Mapping[str, np.ndarray], measures: Sequence[Measure] = FLARE_MEASURES
) -> list[MethodRank]:
    """The standings, best first; ``values`` holds methods × cases for every measure, all of them numbers.

    Within a case and measure the best method has rank 1, and equal ones share their mean rank.

    >>> [one.score for one in rank_methods(["A", "B"], {m.name: np.array([[2.0], [1.0]]) for m in FLARE_MEASURES})]
    [1.5, 1.5]
    """
    weights = np.array([measure.weight for measure in measures])
    ranks = np.stack([_ranks(values[measure.name], measure.more_is_better) for measure in measures])
    means = ranks.mean(axis=2)  # measures × methods
    scores = np.round(weights @ means / weights.sum(), DECIMALS)
    places = rankdata(scores, method="min")
    standings = [
        MethodRank(
            name,
            int(places[index]),
            float(scores[index]),
            {measure.name: float(means[row, index]) for row, measure in enumerate(measures)},
        )
        for index, name in enumerate(methods)
    ]
    return sorted(standings, key=lambda one: one.place)


def _ranks(values: np.ndarray, more_is_better: bool) -> np.ndarray:
    rounded = np.round(values, DECIMALS)
    return rankdata(-rounded if more_is_better else rounded, axis=0)
