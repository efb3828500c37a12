"""Scores, the one model of them: cases × organs of every measure, one table per seed, and a method's seeds together.

Which scores there are is the protocol's rule (`flare22`): NaN is "no number", as for an organ that ``strict`` finds
empty in both. Every mean of scores is worked out here, over the numbers there are: over cases, then over organs, as
FLARE has it in its later years. The tables on disk are CSV with FLARE's columns, and JSON of everything.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from flarecps import __version__
from flarecps.anatomy import FLARE22_ORGANS, Organ
from flarecps.atomic import write_json, write_text
from flarecps.errors import DatasetError
from flarecps.evaluation.flare22 import BOTH_EMPTY, OrganScore, Protocol
from flarecps.json_fields import is_number, is_whole
from flarecps.text_files import csv_text, read_csv, read_own_json
from flarecps.volumes.io import scan_name

FORMAT, FORMAT_VERSION = "flarecps-scores", 1
MEASURES = ("dsc", "nsd")
DISTANCES = ("hd95_mm", "assd_mm")  # strict only
VOLUMES = ("volume_error_ml", "volume_error_relative")  # per organ only: a mean over organs would say nothing
CSV_DECIMALS = 6  # official scores arrive rounded to 4
DSC, NSD = "_DSC", "_NSD"  # how columns of a score table end


@dataclass(frozen=True)
class Summary:
    """Mean and sample SD (n - 1) of ``n`` scores, and the SD of the seeds' means; None where there are too few."""

    mean: float | None
    sd: float | None
    n: int
    seeds_sd: float | None = None


def summarise(values: Sequence[float | None] | np.ndarray) -> Summary:
    """Mean, SD and number of the finite values; None and NaN are left out.

    >>> summarise([0.5, None, 1.0]).mean, summarise([float("nan")])
    (0.75, Summary(mean=None, sd=None, n=0, seeds_sd=None))
    """
    found = np.array([math.nan if value is None else value for value in values], float)
    found = found[np.isfinite(found)]
    if not found.size:
        return Summary(None, None, 0)
    return Summary(float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None, int(found.size))


def mean_of(values: Sequence[float | None] | np.ndarray) -> float:
    """The mean of the finite values; NaN without any."""
    mean = summarise(values).mean
    return math.nan if mean is None else mean


def _mean_along(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the finite values along an axis, NaN where there are none (NumPy's nanmean warns of that)."""
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Scores:
    """One table: of each measure cases × organs (by FLARE's column names), NaN where there is no number.

    ``origin`` is its file; ``protocol`` and ``tolerances_mm`` are what it was scored by, ``empty`` in how many cases an
    organ is neither in the prediction nor in the reference (by column, none with 0), as far as that is known.
    """

    cases: tuple[str, ...]
    organs: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    origin: str = ""
    protocol: str | None = None
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    empty: Mapping[str, int] = field(default_factory=dict)

    def organ(self, organ: str, measure: str = "dsc") -> np.ndarray:
        """The finite scores of one organ over cases; empty for an organ that is not in the table."""
        if organ not in self.organs:
            return np.empty(0)
        values = self.values[measure][:, self.organs.index(organ)]
        return values[np.isfinite(values)]

    def at(self, case: str, organ: str, measure: str = "dsc") -> float:
        """One score; NaN for a case or organ that is not in the table."""
        if case not in self.cases or organ not in self.organs:
            return math.nan
        return float(self.values[measure][self.cases.index(case), self.organs.index(organ)])

    def case_means(self, measure: str = "dsc") -> np.ndarray:
        """The mean over organs of every case; NaN for a case without a number."""
        return _mean_along(self.values[measure], 1)

    def of(self, case: str, measure: str = "dsc") -> float:
        """The mean over organs of one case; NaN for a case that is not in the table."""
        return float(self.case_means(measure)[self.cases.index(case)]) if case in self.cases else math.nan

    def summary(self, measure: str = "dsc", organ: str | None = None) -> Summary:
        """One organ over the cases that have a number; without ``organ`` the mean of the organs' means.

        SD and n of the latter are those of the cases' means over organs.
        """
        if organ is not None:
            return summarise(self.organ(organ, measure))
        over_cases = summarise(self.case_means(measure))
        return Summary(summarise(_mean_along(self.values[measure], 0)).mean, over_cases.sd, over_cases.n)

    def mean(self, measure: str = "dsc", organ: str | None = None) -> float:
        """The mean over cases of one organ, or of all organs' means; NaN without a number."""
        means = _mean_along(self.values[measure], 0)  # over cases
        if organ is None:
            return mean_of(means)
        return float(means[self.organs.index(organ)]) if organ in self.organs else math.nan

    def select(self, cases: Sequence[str], organs: Sequence[str]) -> Scores:
        """The same scores with these cases and organs, in this order; NaN for what the table does not hold."""
        row, column = ({name: place for place, name in enumerate(names)} for names in (self.cases, self.organs))
        places = np.ix_([row.get(case, -1) for case in cases], [column.get(organ, -1) for organ in organs])
        # A row and a column of NaN at the end, where -1 leads.
        values = {m: np.pad(own, ((0, 1), (0, 1)), constant_values=np.nan)[places] for m, own in self.values.items()}
        return Scores(tuple(cases), tuple(organs), values, self.origin, self.protocol, self.tolerances_mm)


@dataclass(frozen=True)
class MethodScores:
    """A method by name, and its scores: one table per seed. Tables need not hold the same cases or organs."""

    name: str
    seeds: tuple[Scores, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases of any seed, in order."""
        return tuple(dict.fromkeys(case for table in self.seeds for case in table.cases))

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs of any seed, in order."""
        return tuple(dict.fromkeys(organ for table in self.seeds for organ in table.organs))

    @property
    def complete_cases(self) -> tuple[str, ...]:
        """The cases that every seed holds."""
        return tuple(case for case in self.cases if all(case in table.cases for table in self.seeds))

    def over_seeds(self, cases: Sequence[str], organs: Sequence[str]) -> Scores:
        """Every score the mean over the seeds that have a number; NaN where none has."""
        tables = [table.select(cases, organs) for table in self.seeds]
        values = {m: _mean_along(np.stack([table.values[m] for table in tables]), 0) for m in MEASURES}
        return Scores(tuple(cases), tuple(organs), values)

    def seed_means(self, measure: str = "dsc", organ: str | None = None) -> np.ndarray:
        """Every seed's mean over its own cases, of one organ or over organs; NaN without a number."""
        return np.array([table.mean(measure, organ) for table in self.seeds])

    def summary(self, measure: str, organ: str | None = None) -> Summary:
        """As `Scores.summary` of all cases, each the mean over its seeds; with the SD of the seeds' own means."""
        found = self._merged.summary(measure, organ)
        return Summary(found.mean, found.sd, found.n, summarise(self.seed_means(measure, organ)).sd)

    @cached_property
    def _merged(self) -> Scores:
        return self.over_seeds(self.cases, self.organs)


def shared_cases(first: MethodScores, second: MethodScores) -> tuple[str, ...]:
    """The cases that every seed of both methods holds, in the first one's order."""
    return tuple(case for case in first.complete_cases if case in second.complete_cases)


def paired_change(baseline: MethodScores, method: MethodScores) -> Scores:
    """Method minus baseline over their `shared_cases`, organ by organ: NaN where one of the two has no number.

    A case's mean is over the organs that both have in it.
    """
    cases = shared_cases(baseline, method)
    organs = tuple(dict.fromkeys((*baseline.organs, *method.organs)))
    ours, theirs = method.over_seeds(cases, organs), baseline.over_seeds(cases, organs)
    return Scores(cases, organs, {measure: ours.values[measure] - theirs.values[measure] for measure in MEASURES})


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case by organ name; ``file_name`` is what FLARE's tables call the case."""

    file_name: str
    organs: dict[str, OrganScore]
    missing: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredCases:
    """What came of scoring two folders, in full: cases by name, failed ones with their error.

    ``missing`` names the references without prediction: in no mean under ``official``, scored 0 under ``strict``.
    """

    protocol: Protocol
    organs: tuple[Organ, ...]
    cases: dict[str, CaseScore]
    failed: dict[str, str]
    missing: tuple[str, ...]

    @cached_property
    def scores(self) -> Scores:
        """The numbers: ``dsc``, ``nsd``, ``hd95_mm``, ``volume_error_ml`` …, NaN where the protocol gives none."""
        values = {}
        for measure in (*MEASURES, *DISTANCES, *VOLUMES):
            rows = [[getattr(case.organs[one.name], measure) for one in self.organs] for case in self.cases.values()]
            values[measure] = np.array(rows, float).reshape(len(self.cases), len(self.organs))  # None becomes NaN
        tolerances_mm = {organ.name: organ.tolerance_mm for organ in self.organs}
        columns = tuple(organ.column for organ in self.organs)
        empty = {organ.column: count for organ in self.organs if (count := self.empty_in_both(organ))}
        settings: dict[str, Any] = {"protocol": self.protocol, "tolerances_mm": tolerances_mm, "empty": empty}
        return Scores(tuple(self.cases), columns, values, **settings)

    def empty_in_both(self, organ: Organ) -> int:
        """In how many cases an organ is neither in the prediction nor in the reference."""
        return sum(case.organs[organ.name].remark == BOTH_EMPTY for case in self.cases.values())


def read_scores(path: Path) -> Scores:
    """The scores in a CSV with the columns ``Name``, ``{Organ}_DSC`` and ``{Organ}_NSD``; empty cells are NaN.

    Protocol and tolerances are those of the JSON that ``flarecps score`` writes beside it. Raises DatasetError for
    another table, and for a cell that is no number.
    """
    expected = f"expected a table of scores (Name, ORGAN{DSC}, ORGAN{NSD}), as 'flarecps score' writes it"
    table = read_csv(path, DatasetError, expected)
    columns = tuple(name[: -len(DSC)] for name in table.columns if name.endswith(DSC))
    if "Name" not in table.columns or not columns or not table.rows:
        raise DatasetError(f"{path}: not a table of scores; {expected}")

    def score(row: dict[str, str], column: str) -> float:
        cell = row.get(column, "").strip()
        try:
            return float(cell or "nan")
        except ValueError:
            raise DatasetError(f"{path}: {column} of {row['Name']} is not a number: {cell!r}; {expected}") from None

    values = {
        measure: np.array([[score(row, column + kind) for column in columns] for row in table.rows])
        for measure, kind in zip(MEASURES, (DSC, NSD), strict=True)
    }
    settings = _settings(path.with_suffix(".json"))
    protocol, tolerances = settings.get("protocol"), settings.get("tolerances_mm")
    return Scores(
        tuple(scan_name(row["Name"]) for row in table.rows),
        columns,
        values,
        str(path),
        protocol if isinstance(protocol, str) else None,
        tolerances if isinstance(tolerances, dict) and all(map(is_number, tolerances.values())) else {},
        _empty(settings.get("organs")),
    )


def _empty(organs: Any) -> dict[str, int]:
    """By column, in how many cases an organ is in neither map, by the ``organs`` of a scores.json; {} without."""
    known = {organ.name: organ.column for organ in FLARE22_ORGANS}
    found = {}
    for name, entry in organs.items() if isinstance(organs, dict) else ():
        count = entry.get("empty_in_both") if isinstance(entry, dict) else None
        if is_whole(count) and count:
            found[known.get(name, name.replace(" ", "_"))] = int(count)
    return found


def _settings(path: Path) -> dict[str, Any]:
    """The JSON that ``flarecps score`` writes beside its table; {} for tables from elsewhere."""
    content = read_own_json(path)
    return content if content.get("format") == FORMAT else {}


def write_scores(scored: ScoredCases, out: Path) -> None:
    """Write ``scores.csv`` (FLARE's columns) and ``scores.json`` (everything known) into the folder ``out``.

    The CSV has one row per case: Name, then {Organ}_DSC of every organ, then {Organ}_NSD; an empty cell where not
    scored.
    """
    rows = [["Name", *(f"{organ.column}_{measure.upper()}" for measure in MEASURES for organ in scored.organs)]]
    for case in scored.cases.values():
        values = [getattr(case.organs[organ.name], measure) for measure in MEASURES for organ in scored.organs]
        rows.append([case.file_name, *("" if value is None else round(value, CSV_DECIMALS) for value in values)])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scores.csv", csv_text(rows))
    write_json(out / "scores.json", _scores_json(scored))


def _scores_json(scored: ScoredCases) -> dict[str, Any]:
    """All of it as plain types: settings, versions, summaries per organ and overall, scores per case, failures."""
    measures = MEASURES if scored.protocol == "official" else (*MEASURES, *DISTANCES)

    def summary(measure: str, organ: str | None = None) -> dict[str, Any]:
        found = scored.scores.summary(measure, organ)
        return {"mean": found.mean, "sd": found.sd, "n": found.n}

    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "protocol": scored.protocol,
        "labels": {organ.name: organ.id for organ in scored.organs},
        "tolerances_mm": {organ.name: organ.tolerance_mm for organ in scored.organs},
        "versions": {
            "flarecps": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "scipy": scipy.__version__,
        },
        "mean": {measure: summary(measure) for measure in measures},
        "organs": {
            organ.name: {measure: summary(measure, organ.column) for measure in (*measures, *VOLUMES)}
            | {"empty_in_both": scored.empty_in_both(organ)}
            for organ in scored.organs
        },
        "cases": {
            name: {
                "file": case.file_name,
                "missing": case.missing,
                "warnings": list(case.warnings),
                "organs": {
                    organ: asdict(score) | {measure: getattr(score, measure) for measure in VOLUMES}
                    for organ, score in case.organs.items()
                },
            }
            for name, case in scored.cases.items()
        },
        "missing_predictions": list(scored.missing),
        "failed": scored.failed,
    }
