"""Markdown tables of scores: organs as rows, the mean last; one method with DSC and NSD, or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.errors import ConfigError, DatasetError
from flarecps.reporting.run_folder import Scores, read_scores, sd_of

MEASURES = {"dsc": "DSC", "nsd": "NSD"}  # attribute of Scores -> heading
MEAN_ROW = "mean over organs"
NO_NUMBER = "–"


@dataclass(frozen=True)
class Row:
    """One line of a table: an organ (or the mean), and mean ± SD of each column; ``n`` is of the first column."""

    title: str
    cells: tuple[str, ...]
    n: int


def score_rows(scores: Scores) -> list[Row]:
    """DSC and NSD of every organ over cases (mean ± SD), in the table's order, and their mean over organs last.

    The last row is the mean of the organs' means; its SD is that of the cases' means.
    """
    rows = []
    for column in scores.columns:
        values = {measure: scores.organ(column, measure) for measure in MEASURES}
        cells = tuple(mean_and_sd(_mean(found), sd_of(found)) for found in values.values())
        rows.append(Row(organ_title(column), cells, values["dsc"].size))
    overall = tuple(mean_and_sd(scores.mean(measure), scores.spread(measure)) for measure in MEASURES)
    rows.append(Row(MEAN_ROW, overall, sum(bool(np.isfinite(scores.of(case))) for case in scores.cases)))
    return rows


def scores_markdown(scores: Scores, title: str = "Scores", notes: Sequence[str] = ()) -> str:
    """One method's scores: organs as rows; DSC, NSD (mean ± SD over cases) and the number of cases as columns."""
    body = [[row.title, *row.cells, str(row.n)] for row in score_rows(scores)]
    table = markdown_table(["organ", *MEASURES.values(), "cases"], body)
    remarks = "".join(f"- {note}\n" for note in notes)
    return f"# {title}\n\nMean ± SD over cases.\n\n{table}" + (f"\n{remarks}" if remarks else "")


def methods_markdown(methods: Mapping[str, Scores], measure: str = "dsc", with_sd: bool = True) -> str:
    """Several methods side by side: organs as rows, methods as columns (mean ± SD over cases), the mean last.

    An organ that a method does not score gets a dash. Raises ConfigError for an unknown measure or no method.
    """
    if measure not in MEASURES or not methods:
        raise ConfigError(f"a table needs a measure ({' or '.join(MEASURES)}, not {measure!r}) and one or more methods")
    columns = list(dict.fromkeys(column for scores in methods.values() for column in scores.columns))
    body = []
    for column in columns:
        cells = []
        for scores in methods.values():
            values = scores.organ(column, measure)
            cells.append(mean_and_sd(_mean(values), sd_of(values) if with_sd else float("nan")))
        body.append([organ_title(column), *cells])
    means = [
        mean_and_sd(scores.mean(measure), scores.spread(measure) if with_sd else float("nan"))
        for scores in methods.values()
    ]
    return markdown_table([MEASURES[measure], *methods], [*body, [MEAN_ROW, *means]])


def compare_files(files: Mapping[str, Path], measure: str = "dsc") -> str:
    """`methods_markdown` of score files: method name -> ``scores.csv``, or the folder that holds it."""
    methods = {}
    for name, path in files.items():
        table = path / "scores.csv" if path.is_dir() else path
        if not table.is_file():
            raise DatasetError(f"{table}: no such file; expected a score table made by 'flarecps score'")
        methods[name] = read_scores(table)
    return methods_markdown(methods, measure)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first to the left, the others to the right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [header, *body]]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(header))]

    def text(line: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([line[0].ljust(widths[0]), *numbers]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])]) + "\n"


def mean_and_sd(mean: float, sd: float) -> str:
    """``0.8794 ± 0.0512``; without SD the mean alone; a dash without a mean.

    >>> mean_and_sd(0.87941, 0.05117), mean_and_sd(0.5, float("nan")), mean_and_sd(float("nan"), 0.0)
    ('0.8794 ± 0.0512', '0.5000', '–')
    """
    if not np.isfinite(mean):
        return NO_NUMBER
    return f"{mean:.4f} ± {sd:.4f}" if np.isfinite(sd) else f"{mean:.4f}"


def organ_title(column: str) -> str:
    """What people call the organ of a score column: FLARE22's by their full names, others with spaces."""
    known = {organ.column: organ.name for organ in FLARE22_ORGANS}
    return known.get(column, column.replace("_", " "))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
