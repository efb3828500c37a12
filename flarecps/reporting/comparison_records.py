"""A comparison for programs: CSV in the layout of the tables, CSV of the differences, JSON of everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flarecps import __version__
from flarecps.evaluation.comparison import OVERALL, Comparison
from flarecps.evaluation.ranking import FLARE_MEASURES, Standing
from flarecps.reporting.comparison import TITLES, row_title

FORMAT, FORMAT_VERSION = "flarecps-comparison", 1
CSV_DECIMALS = 6


def means_csv(comparison: Comparison) -> str:
    """Organs as rows, the mean last; per measure and method mean, SD over cases, SD over seeds and number of cases."""
    pairs = [(measure, method.name) for measure in comparison.measures for method in comparison.methods]
    kinds = ("mean", "SD", "SD over seeds", "cases")
    rows: list[list[Any]] = [["organ", *(f"{TITLES[m]} {name} {kind}" for m, name in pairs for kind in kinds)]]
    for organ in (*comparison.organs, OVERALL):
        row: list[Any] = [row_title(organ)]
        for measure, name in pairs:
            cell = comparison.cells[measure][name][organ]
            row += [*map(_rounded, (cell.mean, cell.sd, cell.seeds_sd)), cell.n]
        rows.append(row)
    return _csv(rows)


def differences_csv(comparison: Comparison) -> str:
    """One row per measure, method and organ: the method minus the baseline, with interval, p and counts."""
    rows: list[list[Any]] = [
        ["measure", "method", "baseline", "organ", "difference", "low", "high", "p", "p_holm",
         "better", "equal", "worse", "cases"]
    ]  # fmt: skip
    for measure in comparison.measures:
        for method in comparison.methods[1:]:
            for organ, one in comparison.differences[measure][method.name].items():
                low, high = (one.interval.low, one.interval.high) if one.interval else (None, None)
                numbers = map(_rounded, (one.mean, low, high))
                p = ["" if value is None else f"{value:.6g}" for value in (one.p, one.p_holm)]
                counts = (one.counts.wins, one.counts.ties, one.counts.losses)
                rows.append([TITLES[measure], method.name, comparison.baseline.name, row_title(organ),
                             *numbers, *p, *counts, one.n])  # fmt: skip
    return _csv(rows)


def ranking_csv(standings: Sequence[Standing]) -> str:
    """One row per method, best first: place, score, mean rank in each measure."""
    rows: list[list[Any]] = [["method", "place", "score", *(f"rank {measure.name}" for measure in FLARE_MEASURES)]]
    for one in standings:
        rows.append([one.method, one.place, *map(_rounded, (one.score, *(one.ranks[m.name] for m in FLARE_MEASURES)))])
    return _csv(rows)


def to_json(
    comparison: Comparison, remarks: Sequence[str], standings: Sequence[Standing] = (), ranked_cases: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything as plain types, unrounded: files and cases of each method, cells, differences, ranking, remarks."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "flarecps": __version__,
        "baseline": comparison.baseline.name,
        "bootstrap": {
            "method": "BCa",
            "resamples": comparison.resamples,
            "confidence": comparison.confidence,
            "seed": comparison.seed,
        },
        "organs": list(comparison.organs),
        "methods": {
            method.name: {
                "files": [file.origin for file in method.files],
                "protocols": [file.protocol for file in method.files],
                "cases": list(method.cases),
            }
            for method in comparison.methods
        },
        "means": {
            measure: {name: {organ: asdict(cell) for organ, cell in cells.items()} for name, cells in methods.items()}
            for measure, methods in comparison.cells.items()
        },
        "differences": {
            measure: {name: {organ: asdict(one) for organ, one in found.items()} for name, found in methods.items()}
            for measure, methods in comparison.differences.items()
        },
        "ranking": {"cases": list(ranked_cases), "standings": [asdict(one) for one in standings]},
        "remarks": list(remarks),
    }


def _rounded(number: float | None) -> float | str:
    return "" if number is None else round(number, CSV_DECIMALS)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
