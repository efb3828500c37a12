"""The scores of several runs beside one another, as the page's tables take them: plain records, nothing drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flarecps.anatomy import Organ
from flarecps.reporting.run_folder import Run, Scores, mean_of, sd_of

MEASURES = ("dsc", "nsd")
DECIMALS = 3  # as shown; what looks equal is a tie


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation of one run's scores; ``best``: no other run of this row is better as shown."""

    mean: float
    sd: float
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One organ, or all: cells per run for each measure, the first run's DSC minus the second's, cases counted."""

    organ: Organ | None
    dsc: tuple[Cell, ...]
    nsd: tuple[Cell, ...]
    change: float | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Organs as rows, runs as columns (their index among all runs, and name), the mean apart."""

    runs: tuple[tuple[int, str], ...]
    rows: tuple[Line, ...]
    mean: Line
    partial: bool  # some organ has no score in some case


@dataclass(frozen=True)
class Difference:
    """First run minus second, in mean DSC per case, over the cases that both scored."""

    names: tuple[str, str]
    mean: float
    sd: float
    higher: int
    cases: int


def table(runs: Sequence[Run], organs: Sequence[Organ]) -> Table | None:
    """The scores of all scored runs per organ; None when no run has scores."""
    scored = [(index, run.name, run.scores) for index, run in enumerate(runs) if run.scores is not None]
    if not scored:
        return None
    tables = [scores for _, _, scores in scored]
    rows = []
    for organ in organs:
        column = organ.column
        if not any(column in scores.columns for scores in tables):
            continue
        cells = {m: [Cell(mean_of(s.organ(column, m)), sd_of(s.organ(column, m))) for s in tables] for m in MEASURES}
        change = None
        if len(tables) == 2:
            first, second = tables
            change = mean_of([first.at(case, column) - second.at(case, column) for case in first.cases])
        counts = tuple(int(scores.organ(column).size) for scores in tables)
        rows.append(Line(organ, marked(cells["dsc"]), marked(cells["nsd"]), change, counts))
    means = {measure: [Cell(s.mean(measure), s.spread(measure)) for s in tables] for measure in MEASURES}
    between = difference([run for run in runs if run.scores is not None])
    mean = Line(
        None,
        marked(means["dsc"]),
        marked(means["nsd"]),
        between.mean if between else None,
        tuple(len(scores.cases) for scores in tables),
    )
    return Table(
        tuple((index, name) for index, name, _ in scored),
        tuple(rows),
        mean,
        partial=any(row.counts != mean.counts for row in rows),
    )


def marked(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with the highest mean marked as best, all of them in a tie; none when all are equal, or only one is."""
    shown = [round(cell.mean, DECIMALS) for cell in cells]
    finite = [mean for mean in shown if math.isfinite(mean)]
    if len(finite) < 2 or min(finite) == max(finite):
        return tuple(cells)
    return tuple(Cell(cell.mean, cell.sd, mean == max(finite)) for cell, mean in zip(cells, shown, strict=True))


def difference(runs: Sequence[Run]) -> Difference | None:
    """First minus second run; None unless there are exactly two, both scored, with a scored case in common."""
    if len(runs) != 2:
        return None
    first, second = runs
    if first.scores is None or second.scores is None:
        return None
    changes = _changes(first.scores, second.scores)
    if not changes:
        return None
    higher = sum(change > 0 for change in changes)
    return Difference((first.name, second.name), mean_of(changes), sd_of(changes), higher, len(changes))


def cases(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, float]]]]:
    """Every case with its mean DSC and NSD in every scored run, the lowest DSC (mean over runs) first."""
    tables = [run.scores for run in runs if run.scores is not None]
    names = {case for scores in tables for case in scores.cases}
    rows = {name: [{measure: scores.of(name, measure) for measure in MEASURES} for scores in tables] for name in names}
    return sorted(rows.items(), key=lambda row: (mean_of([cell["dsc"] for cell in row[1]]), row[0]))


def _changes(first: Scores, second: Scores) -> list[float]:
    changes = [first.of(case) - second.of(case) for case in first.cases]
    return [change for change in changes if math.isfinite(change)]
