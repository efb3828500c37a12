"""Several methods scored on the same cases: their means side by side, and each one's difference from the first.

A method is one score table, or several that differ by the seed of training. Tables need not hold the same cases or
organs: means are over what a method has, differences over what both have; `remarks` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flarecps.errors import DatasetError
from flarecps.evaluation.score_table import (
    MEASURES,
    MethodScores,
    Scores,
    Summary,
    paired_change,
    shared_cases,
    summarise,
)
from flarecps.evaluation.statistics import Counts, Interval, bootstrap_interval, count_wins, holm, wilcoxon_p

OVERALL = "mean"  # the row below the organs
SHOWN = 5  # names in one remark


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
    """All numbers. ``means[measure][method][organ]``, ``differences[measure][method][organ]`` (no baseline there).

    The organ ``OVERALL`` is the mean over organs. ``resamples``, ``confidence`` and ``seed`` are the bootstrap's.
    """

    methods: tuple[MethodScores, ...]
    organs: tuple[str, ...]
    measures: tuple[str, ...]
    means: Mapping[str, Mapping[str, Mapping[str, Summary]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    resamples: int
    confidence: float
    seed: int

    @property
    def baseline(self) -> MethodScores:
        """The method that the others are compared with."""
        return self.methods[0]


def compare_methods(
    methods: Sequence[MethodScores], resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """The comparison of the methods; the first one is the baseline.

    Raises DatasetError when a method shares no case, or no organ, with the baseline.
    """
    baseline, *others = methods
    for method in others:
        _must_meet(baseline, method)
    organs = tuple(dict.fromkeys(organ for method in methods for organ in method.organs))
    measures = tuple(m for m in MEASURES if any(np.isfinite(t.values[m]).any() for one in methods for t in one.seeds))
    rows = [(organ, organ) for organ in organs] + [(OVERALL, None)]
    changes = {method.name: paired_change(baseline, method) for method in others}
    return Comparison(
        tuple(methods),
        organs,
        measures,
        {m: {one.name: {row: one.summary(m, organ) for row, organ in rows} for one in methods} for m in measures},
        {
            measure: {
                name: _differences(change, measure, organs, resamples, confidence, seed)
                for name, change in changes.items()
            }
            for measure in measures
        },
        resamples,
        confidence,
        seed,
    )


def _differences(
    change: Scores, measure: str, organs: Sequence[str], resamples: int, confidence: float, seed: int
) -> dict[str, Difference]:
    columns = {organ: change.organ(organ, measure) for organ in organs}
    case_means = change.case_means(measure)
    columns[OVERALL] = case_means[np.isfinite(case_means)]
    p = {row: wilcoxon_p(column) for row, column in columns.items()}
    p_holm: dict[str, float | None] = dict(zip(organs, holm([p[organ] for organ in organs]), strict=True))
    return {
        row: Difference(
            column.size,
            summarise(column).mean,
            bootstrap_interval(column, resamples, confidence, seed),
            p[row],
            p_holm.get(row),
            count_wins(column),
        )
        for row, column in columns.items()
    }


def _must_meet(baseline: MethodScores, method: MethodScores) -> None:
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


def remarks(comparison: Comparison) -> list[str]:
    """Sentences, most weighty first; none when all files hold the same cases, organs and rules, with every score."""
    found = [*_rules(comparison.methods), *_cases(comparison), *_organs(comparison), *_without_number(comparison)]
    if any(len(method.seeds) > 1 for method in comparison.methods):
        seeds = ", ".join(f"{method.name} {len(method.seeds)}" for method in comparison.methods)
        found.append(
            f"seeds: {seeds}; a case's score is its mean over the seeds, so intervals and p speak of other cases, "
            "not of other trainings: see the SD over seeds"
        )
    return found


def _rules(methods: Sequence[MethodScores]) -> list[str]:
    files = [file for method in methods for file in method.seeds]
    found = []
    protocols = {file.protocol for file in files if file.protocol}
    if len(protocols) > 1:
        by_file = ", ".join(f"{file.origin}: {file.protocol or 'unknown'}" for file in files)
        found.append(f"scored by different protocols, so the numbers are not comparable ({by_file})")
    first = next((file for file in files if file.tolerances_mm), None)
    if first is not None:
        other = [file.origin for file in files if _tolerances_differ(file, first)]
        if other:
            found.append(f"NSD with other tolerances than in {first.origin}: {_some(other)}")
    return found


def _tolerances_differ(file: Scores, other: Scores) -> bool:
    both = set(file.tolerances_mm) & set(other.tolerances_mm)
    return any(file.tolerances_mm[organ] != other.tolerances_mm[organ] for organ in both)


def _cases(comparison: Comparison) -> list[str]:
    everyone = tuple(dict.fromkeys(case for method in comparison.methods for case in method.cases))
    found = []
    for method in comparison.methods:
        for file in method.seeds:
            missing = [case for case in everyone if case not in file.cases]
            if missing:
                found.append(f"{_count(missing)} not in {file.origin} ({method.name}): {_some(missing)}")
    if found:
        pairs = [f"{one.name} {len(shared_cases(comparison.baseline, one))}" for one in comparison.methods[1:]]
        found.append(
            "means are over each method's own cases, differences over those in common with "
            f"{comparison.baseline.name} ({', '.join(pairs)} of {len(everyone)})"
        )
    return found


def _organs(comparison: Comparison) -> list[str]:
    found = []
    for method in comparison.methods:
        missing = [organ for organ in comparison.organs if organ not in method.organs]
        if missing:
            found.append(
                f"{method.name} lacks {', '.join(missing)}: its mean is over fewer organs, its difference over the "
                "common ones"
            )
    return found


def _without_number(comparison: Comparison) -> list[str]:
    """Empty cells in rows and columns that exist: strict's organs that are empty in reference and prediction."""
    found = []
    for method in comparison.methods:
        cells = sum(
            int((~np.isfinite(file.values[measure])).sum()) for file in method.seeds for measure in comparison.measures
        )
        if cells:
            found.append(
                f"{method.name}: {cells} cell{'s' if cells > 1 else ''} without a number (an organ in neither "
                "reference nor prediction, strict), left out"
            )
    return found


def _count(cases: Sequence[str]) -> str:
    return f"{len(cases)} case{'' if len(cases) == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
