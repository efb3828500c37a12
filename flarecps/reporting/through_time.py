"""What training saw of its validation cases: the siblings' DSC per organ, and their labels through the epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flarecps import metric_names
from flarecps.anatomy import Organ
from flarecps.reporting.pictures import data_uri
from flarecps.reporting.run_folder import Run, mean_of

FOLDER = "overlays"
EARLIER = 4  # pictures before the latest one
SOURCES = {"sibling_1": "sibling 1", "sibling_2": "sibling 2", "average": "both averaged"}


@dataclass(frozen=True)
class Moment:
    """A picture of a case after some epoch, as a data URI."""

    epoch: int
    picture: str


@dataclass(frozen=True)
class Course:
    """One case in one run: the latest picture, and a few from earlier, the first one first."""

    run: str
    place: int  # of the run among all
    case: str
    latest: Moment
    earlier: tuple[Moment, ...]


@dataclass(frozen=True)
class ValidationTable:
    """DSC per organ after each run's last validation: a column for every run and source."""

    columns: tuple[tuple[int, str, str], ...]  # the run's place and name, the source in words
    rows: tuple[tuple[Organ, tuple[float | None, ...]], ...]
    mean: tuple[float, ...]
    epochs: tuple[tuple[str, int], ...]  # run, epochs completed at its last validation


def courses(runs: Sequence[Run], places: Sequence[int], cases: int = 2) -> list[Course]:
    """The pictures of up to ``cases`` validation cases (one, of more than two runs) of the runs at ``places``."""
    cases = cases if len(places) <= 2 else 1
    found = []
    for place in places:
        run = runs[place]
        folders = sorted(folder for folder in (run.folder / FOLDER).glob("*") if folder.is_dir())
        for folder in folders[:cases]:
            drawn = {epoch: path for path in folder.glob("epoch_*.jpg") if (epoch := _epoch(path)) is not None}
            if drawn:
                *earlier, latest = [Moment(epoch, _uri(drawn[epoch])) for epoch in chosen(sorted(drawn))]
                found.append(Course(run.name, place, folder.name, latest, tuple(earlier)))
    return sorted(found, key=lambda course: (course.case, course.place))


def chosen(epochs: Sequence[int], earlier: int = EARLIER) -> list[int]:
    """The first and the last of ``epochs`` and some between them, evenly: at most ``earlier`` and the last.

    >>> chosen([5, 10, 15, 20, 25, 30, 35, 40]), chosen([1, 2])
    ([5, 15, 20, 30, 40], [1, 2])
    """
    if len(epochs) <= earlier + 1:
        return list(epochs)
    return [epochs[round(number * (len(epochs) - 1) / earlier)] for number in range(earlier + 1)]


def validation_table(runs: Sequence[Run], organs: Sequence[Organ]) -> ValidationTable | None:
    """The last validation of every run, by sibling; None where no run was validated."""
    columns, values, epochs = [], [], []
    for place, run in enumerate(runs):
        known = [
            (source, words) for source, words in SOURCES.items()
            if any(metric_names.dsc(source, organ.name) in run.metrics for organ in organs)
        ]  # fmt: skip
        if len(known) == 2:  # one network and its own average
            known = known[:1]
        for source, words in known:
            columns.append((place, run.name, words if len(known) > 1 else "one network"))
            curves = [run.metrics.get(metric_names.dsc(source, organ.name)) for organ in organs]
            values.append([None if curve is None else float(curve.values[-1]) for curve in curves])
        if known:
            mean = run.metrics.get(metric_names.DSC_MEAN)
            epochs.append((run.name, int(mean.epochs[-1]) if mean is not None else 0))
    if not columns:
        return None
    rows = [(organ, tuple(column[row] for column in values)) for row, organ in enumerate(organs)]
    return ValidationTable(
        tuple(columns),
        tuple(row for row in rows if any(value is not None for value in row[1])),
        tuple(mean_of([value for value in column if value is not None]) for column in values),
        tuple(epochs),
    )


def _epoch(path: Path) -> int | None:
    found = re.fullmatch(r"epoch_(\d+)", path.stem)
    return int(found[1]) if found else None


def _uri(path: Path) -> str:
    return data_uri(path.read_bytes(), "image/jpeg")
