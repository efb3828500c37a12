"""The table of all scores of one comparison: its means, and how it is kept as CSV (FLARE's columns) and JSON."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from flarecps import __version__
from flarecps.anatomy import Organ
from flarecps.atomic import write_json, write_text
from flarecps.evaluation.flare22 import BOTH_EMPTY, OrganScore, Protocol

FORMAT, FORMAT_VERSION = "flarecps-scores", 1
MEASURES = ("dsc", "nsd")
DISTANCES = ("hd95_mm", "assd_mm")  # strict only
VOLUMES = ("volume_error_ml", "volume_error_relative")  # per organ only: a mean over organs would say nothing
CSV_DECIMALS = 6  # official scores arrive rounded to 4


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case by organ name; ``file_name`` is what FLARE's tables call the case."""

    file_name: str
    organs: dict[str, OrganScore]
    missing: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for n < 2) of ``n`` scores; mean None for n = 0."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one comparison, and what went wrong: cases by name, failed ones with their error.

    ``missing`` names the references without prediction: in no mean under ``official``, scored 0 under ``strict``.
    """

    protocol: Protocol
    organs: tuple[Organ, ...]
    cases: dict[str, CaseScore]
    failed: dict[str, str]
    missing: tuple[str, ...]

    def of_organ(self, organ: str, measure: str) -> Summary:
        """One organ's ``dsc``, ``nsd``, ``hd95_mm``, ``volume_error_ml`` … over the cases that have a number."""
        return summarise([getattr(case.organs[organ], measure) for case in self.cases.values()])

    def overall(self, measure: str) -> Summary:
        """The mean of the organs' means (FLARE's later years); SD and n are of the cases' means over organs."""
        organs = [self.of_organ(organ.name, measure).mean for organ in self.organs]
        cases = [
            summarise([getattr(score, measure) for score in case.organs.values()]).mean for case in self.cases.values()
        ]
        over_cases = summarise(cases)
        return Summary(summarise(organs).mean, over_cases.sd, over_cases.n)


def summarise(values: Sequence[float | None]) -> Summary:
    """Mean, SD and number of the values that are not None."""
    found = [value for value in values if value is not None]
    if not found:
        return Summary(None, None, 0)
    return Summary(float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None, len(found))


def write_scores(table: ScoreTable, out: Path) -> None:
    """Write ``scores.csv`` (FLARE's columns) and ``scores.json`` (everything known) into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scores.csv", to_csv(table))
    write_json(out / "scores.json", to_json(table))


def to_csv(table: ScoreTable) -> str:
    """One row per case: Name, then {Organ}_DSC of every organ, then {Organ}_NSD; an empty cell where not scored."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Name", *(f"{organ.column}_{measure.upper()}" for measure in MEASURES for organ in table.organs)])
    for case in table.cases.values():
        values = [getattr(case.organs[organ.name], measure) for measure in MEASURES for organ in table.organs]
        writer.writerow([case.file_name, *("" if value is None else round(value, CSV_DECIMALS) for value in values)])
    return text.getvalue()


def to_json(table: ScoreTable) -> dict[str, Any]:
    """The table as plain types: settings, versions, summaries per organ and overall, scores per case, failures."""
    measures = MEASURES if table.protocol == "official" else (*MEASURES, *DISTANCES)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "protocol": table.protocol,
        "labels": {organ.name: organ.id for organ in table.organs},
        "tolerances_mm": {organ.name: organ.tolerance_mm for organ in table.organs},
        "versions": {
            "flarecps": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "scipy": scipy.__version__,
        },
        "mean": {measure: asdict(table.overall(measure)) for measure in measures},
        "organs": {
            organ.name: {measure: asdict(table.of_organ(organ.name, measure)) for measure in (*measures, *VOLUMES)}
            | {"empty_in_both": sum(case.organs[organ.name].remark == BOTH_EMPTY for case in table.cases.values())}
            for organ in table.organs
        },
        "cases": {
            name: {
                "file": case.file_name,
                "missing": case.missing,
                "warnings": list(case.warnings),
                "organs": {organ: _everything(score) for organ, score in case.organs.items()},
            }
            for name, case in table.cases.items()
        },
        "missing_predictions": list(table.missing),
        "failed": table.failed,
    }


def _everything(score: OrganScore) -> dict[str, Any]:
    return asdict(score) | {measure: getattr(score, measure) for measure in VOLUMES}
