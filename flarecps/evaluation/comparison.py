"""Several methods scored on the same cases: their means side by side, and each one's difference from the first.

A method is one score table, or several that differ by the seed of training. Tables need not hold the same cases or
organs: means are over what a method has, differences over what both have; `remarks` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flarecps.errors import DatasetError, counted, first_few
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
        if not shared_cases(baseline, method):
            raise DatasetError(
                f"{method.name} and {baseline.name} have no case in common (the first are called {method.cases[0]!r} "
                f"and {baseline.cases[0]!r}); expected scores of the same scans, with the same names"
            )
        if not set(method.organs) & set(baseline.organs):
            raise DatasetError(
                f"{method.name} and {baseline.name} have no organ in common ({', '.join(method.organs[:3])} … and "
                f"{', '.join(baseline.organs[:3])} …); expected scores of one label set"
            )
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


def remarks(comparison: Comparison) -> list[str]:
    """Sentences, most weighty first; none when all files hold the same cases, organs and rules, with every score."""
    methods = comparison.methods
    files = [(method, file) for method in methods for file in method.seeds]
    found = []
    if len({file.protocol for _, file in files if file.protocol}) > 1:
        by_file = ", ".join(f"{file.origin}: {file.protocol or 'unknown'}" for _, file in files)
        found.append(f"scored by different protocols, so the numbers are not comparable ({by_file})")
    first = next((file for _, file in files if file.tolerances_mm), None)
    if first is not None:
        known = first.tolerances_mm
        other = [
            file.origin
            for _, file in files
            if any(known.get(organ, tolerance) != tolerance for organ, tolerance in file.tolerances_mm.items())
        ]
        if other:
            found.append(f"NSD with other tolerances than in {first.origin}: {first_few(other)}")

    everyone = tuple(dict.fromkeys(case for method in methods for case in method.cases))
    lacking = [(method, file, [case for case in everyone if case not in file.cases]) for method, file in files]
    for method, file, missing in lacking:
        if missing:
            count = counted(len(missing), "case")
            found.append(f"{count} not in {file.origin} ({method.name}): {first_few(missing)}")
    if any(missing for _, _, missing in lacking):
        pairs = [f"{one.name} {len(shared_cases(comparison.baseline, one))}" for one in methods[1:]]
        found.append(
            "means are over each method's own cases, differences over those in common with "
            f"{comparison.baseline.name} ({', '.join(pairs)} of {len(everyone)})"
        )
    for method in methods:
        if absent := [organ for organ in comparison.organs if organ not in method.organs]:
            found.append(
                f"{method.name} lacks {', '.join(absent)}: its mean is over fewer organs, its difference over the "
                "common ones"
            )
    # Empty cells in rows and columns that exist: strict's organs that are empty in reference and prediction.
    for method in methods:
        cells = sum(int((~np.isfinite(file.values[m])).sum()) for file in method.seeds for m in comparison.measures)
        if cells:
            found.append(
                f"{method.name}: {counted(cells, 'cell')} without a number (an organ in neither "
                "reference nor prediction, strict), left out"
            )
    if len(files) > len(methods):
        seeds = ", ".join(f"{method.name} {len(method.seeds)}" for method in methods)
        found.append(
            f"seeds: {seeds}; a case's score is its mean over the seeds, so intervals and p speak of other cases, "
            "not of other trainings: see the SD over seeds"
        )
    return found
