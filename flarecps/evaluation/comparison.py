"""Several methods scored on the same cases: their means side by side, and each one's difference from the first.

A method is one score file, or several that differ by the seed of training. Files need not hold the same cases or
organs: means are over what a method has, differences over what both have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flarecps.errors import DatasetError
from flarecps.evaluation.statistics import Counts, Interval, bootstrap_interval, count_wins, holm, wilcoxon_p

MEASURES = ("dsc", "nsd")
OVERALL = "mean"  # the row below the organs


@dataclass(frozen=True)
class ScoreFile:
    """One score table: for each measure cases × organs, NaN where there is no score (as for empty in both)."""

    origin: str
    cases: tuple[str, ...]
    organs: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    protocol: str | None = None
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method by name, and its score files, one per seed."""

    name: str
    files: tuple[ScoreFile, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases of any file, in order."""
        return tuple(dict.fromkeys(case for file in self.files for case in file.cases))

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs of any file, in order."""
        return tuple(dict.fromkeys(organ for file in self.files for organ in file.organs))

    @property
    def complete_cases(self) -> tuple[str, ...]:
        """The cases that every file holds."""
        return tuple(case for case in self.cases if all(case in file.cases for file in self.files))

    def scores(self, measure: str, cases: Sequence[str], organs: Sequence[str]) -> np.ndarray:
        """Cases × organs: the mean over the seeds that have a number; NaN where none has."""
        return mean_along(np.stack([_aligned(file, measure, cases, organs) for file in self.files]), 0)

    def seed_means(self, measure: str, organs: Sequence[str]) -> np.ndarray:
        """Seeds × organs: the mean over all cases of each file."""
        return np.stack([mean_along(_aligned(file, measure, file.cases, organs), 0) for file in self.files])


@dataclass(frozen=True)
class Cell:
    """Mean over cases, sample SD (n - 1) over cases and over seeds; None where there are too few numbers."""

    mean: float | None
    sd: float | None
    seeds_sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, paired over ``n`` cases. ``p_holm`` is corrected over the organs; the mean's None.

    ``interval`` needs two cases, ``mean`` and ``p`` one.
    """

    n: int
    mean: float | None
    interval: Interval | None
    p: float | None
    p_holm: float | None
    counts: Counts


@dataclass(frozen=True)
class Comparison:
    """All numbers. ``cells[measure][method][organ]``, ``differences[measure][method][organ]`` (no baseline there).

    The organ ``OVERALL`` is the mean over organs. ``resamples``, ``confidence`` and ``seed`` are the bootstrap's.
    """

    methods: tuple[Method, ...]
    organs: tuple[str, ...]
    measures: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Mapping[str, Cell]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    resamples: int
    confidence: float
    seed: int

    @property
    def baseline(self) -> Method:
        """The method that the others are compared with."""
        return self.methods[0]


def compare(methods: Sequence[Method], resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """The comparison of the methods; the first one is the baseline.

    Raises DatasetError when a method shares no case, or no organ, with the baseline.
    """
    baseline, *others = methods
    for method in others:
        _must_meet(baseline, method)
    organs = tuple(dict.fromkeys(organ for method in methods for organ in method.organs))
    measures = tuple(m for m in MEASURES if any(np.isfinite(f.values[m]).any() for one in methods for f in one.files))
    return Comparison(
        tuple(methods),
        organs,
        measures,
        {measure: {method.name: _cells(method, measure, organs) for method in methods} for measure in measures},
        {
            measure: {
                method.name: _differences(baseline, method, measure, organs, resamples, confidence, seed)
                for method in others
            }
            for measure in measures
        },
        resamples,
        confidence,
        seed,
    )


def shared_cases(first: Method, second: Method) -> tuple[str, ...]:
    """The cases that every file of both methods holds, in the first one's order."""
    return tuple(case for case in first.complete_cases if case in second.complete_cases)


def mean_along(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the numbers along an axis, NaN where there are none (NumPy's nanmean warns of that)."""
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _cells(method: Method, measure: str, organs: Sequence[str]) -> dict[str, Cell]:
    scores = method.scores(measure, method.cases, organs)
    by_seed = method.seed_means(measure, organs)
    cells = {}
    for place, organ in enumerate(organs):
        found = _numbers(scores[:, place])
        cells[organ] = Cell(_mean(found), _sd(found), _sd(_numbers(by_seed[:, place])), found.size)
    # As `flarecps score`: the mean of the organs' means, with the spread of the cases' means.
    of_cases = _numbers(mean_along(scores, 1))
    of_organs = _numbers(mean_along(scores, 0))
    cells[OVERALL] = Cell(_mean(of_organs), _sd(of_cases), _sd(_numbers(mean_along(by_seed, 1))), of_cases.size)
    return cells


def _differences(
    baseline: Method,
    method: Method,
    measure: str,
    organs: Sequence[str],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Difference]:
    cases = shared_cases(baseline, method)
    change = method.scores(measure, cases, organs) - baseline.scores(measure, cases, organs)
    columns = [_numbers(change[:, place]) for place in range(len(organs))]
    corrected = holm([wilcoxon_p(column) for column in columns])
    found = {}
    # The mean is of each case's differences, over the organs that both methods have in it.
    for organ, column, p_holm in zip(
        (*organs, OVERALL), (*columns, _numbers(mean_along(change, 1))), (*corrected, None), strict=True
    ):
        interval = bootstrap_interval(column, resamples, confidence, seed)
        p = wilcoxon_p(column)
        found[organ] = Difference(column.size, _mean(column), interval, p, p_holm, count_wins(column))
    return found


def _aligned(file: ScoreFile, measure: str, cases: Sequence[str], organs: Sequence[str]) -> np.ndarray:
    """Cases × organs of one file in the order asked for; NaN for what it does not hold."""
    values = np.full((len(cases), len(organs)), np.nan)
    row = {case: place for place, case in enumerate(file.cases)}
    column = {organ: place for place, organ in enumerate(file.organs)}
    rows = [place for place, case in enumerate(cases) if case in row]
    columns = [place for place, organ in enumerate(organs) if organ in column]
    source = np.ix_([row[cases[place]] for place in rows], [column[organs[place]] for place in columns])
    values[np.ix_(rows, columns)] = file.values[measure][source]
    return values


def _must_meet(baseline: Method, method: Method) -> None:
    if not shared_cases(baseline, method):
        raise DatasetError(
            f"{method.name} and {baseline.name} have no case in common (the first are called {method.cases[0]!r} and "
            f"{baseline.cases[0]!r}); expected scores of the same scans, with the same names"
        )
    if not set(method.organs) & set(baseline.organs):
        raise DatasetError(
            f"{method.name} and {baseline.name} have no organ in common ({', '.join(method.organs[:3])} … and "
            f"{', '.join(baseline.organs[:3])} …); expected scores of one label set"
        )


def _numbers(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if values.size > 1 else None
