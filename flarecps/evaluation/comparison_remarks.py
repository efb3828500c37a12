"""What a reader of a comparison must know before trusting its numbers: what is missing, and which rules differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flarecps.evaluation.comparison import Comparison, Method, ScoreFile, shared_cases

SHOWN = 5  # names in one remark


def remarks(comparison: Comparison) -> list[str]:
    """Sentences, most weighty first; none when all files hold the same cases, organs and rules, with every score."""
    found = [*_rules(comparison.methods), *_cases(comparison), *_organs(comparison), *_without_number(comparison)]
    if any(len(method.files) > 1 for method in comparison.methods):
        seeds = ", ".join(f"{method.name} {len(method.files)}" for method in comparison.methods)
        found.append(
            f"seeds: {seeds}; a case's score is its mean over the seeds, so intervals and p speak of other cases, "
            "not of other trainings: see the SD over seeds"
        )
    return found


def _rules(methods: Sequence[Method]) -> list[str]:
    files = [file for method in methods for file in method.files]
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


def _tolerances_differ(file: ScoreFile, other: ScoreFile) -> bool:
    both = set(file.tolerances_mm) & set(other.tolerances_mm)
    return any(file.tolerances_mm[organ] != other.tolerances_mm[organ] for organ in both)


def _cases(comparison: Comparison) -> list[str]:
    everyone = tuple(dict.fromkeys(case for method in comparison.methods for case in method.cases))
    found = []
    for method in comparison.methods:
        for file in method.files:
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
            int((~np.isfinite(file.values[measure])).sum()) for file in method.files for measure in comparison.measures
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
